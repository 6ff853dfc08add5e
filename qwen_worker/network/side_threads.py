"""Work that cannot be interrupted, waited for only so long: a name being resolved, a server that does not answer.

When the wait ends its thread is left behind, and is free again when the work ends. Knows nothing of what the work is.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ..errors import Cancelled

POLL = 0.1  # seconds between looks at a cancellation
Result = TypeVar("Result")


class Late(Exception):
    """The work was not done in time."""


class Busy(Exception):
    """All threads are still behind earlier work."""


def acquire(lock: threading.Lock, ends: float, cancelled: threading.Event | None = None) -> None:
    """Raises `Late` when `time.monotonic()` is at `ends`, `Cancelled` within `POLL` once `cancelled` is set."""
    while not lock.acquire(timeout=max(0.0, min(POLL, ends - time.monotonic()))):
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        if time.monotonic() >= ends:
            raise Late


class SideThreads:
    """`most`: of them, and so of pieces of work that may be left behind."""

    def __init__(self, most: int):
        self.most = most
        self.free = threading.BoundedSemaphore(most)
        self.threads = ThreadPoolExecutor(most, thread_name_prefix="side")

    def within(
        self,
        seconds: float,
        work: Callable[[], Result],
        cancelled: threading.Event | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> Result:
        """What `work` returns or raises. `after`: called once it is over and its thread free, also if it never began.

        Raises `Late` after `seconds`, `Busy` when no thread is free, `Cancelled` within `POLL` once `cancelled` is set.
        """
        if not self.free.acquire(blocking=False):
            after()
            raise Busy
        ends = time.monotonic() + seconds
        running = self.threads.submit(work)
        running.add_done_callback(lambda _: (self.free.release(), after()))
        while (left := ends - time.monotonic()) > 0:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if wait([running], timeout=min(POLL, left)).done:
                return running.result()
        raise Late
