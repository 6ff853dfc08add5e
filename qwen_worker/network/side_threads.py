"""Work that cannot be interrupted, waited for only so long: a name being resolved, a server that does not answer.

When the wait ends before the work, the work's thread is left behind, and is free again when the work ends. Knows
nothing of what the work is.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ..errors import Cancelled

POLL_SECONDS = 0.1  # between two looks at a cancellation
Result = TypeVar("Result")


class Late(Exception):
    """The work was not done in time."""


class Busy(Exception):
    """All threads are still at earlier work."""


def acquire_lock(lock: threading.Lock, deadline: float, cancelled: threading.Event | None = None) -> None:
    """Acquire the lock, at the latest when `time.monotonic()` reaches the deadline.

    Raises `Late` then, `Cancelled` within `POLL_SECONDS` once `cancelled` is set.
    """
    while not lock.acquire(timeout=max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))):
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        if time.monotonic() >= deadline:
            raise Late


class SideThreads:
    """`count`: how many threads there are, and so how many pieces of work may be left behind."""

    def __init__(self, count: int):
        self.count = count
        self.free_threads = threading.BoundedSemaphore(count)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="side")

    def run_within(
        self,
        seconds: float,
        work: Callable[[], Result],
        cancelled: threading.Event | None = None,
        after: Callable[[], object] = lambda: None,
    ) -> Result:
        """What `work` returns or raises. `after`: called once the work is over and its thread free, or never began.

        Raises `Late` after `seconds`, `Busy` when no thread is free, `Cancelled` within `POLL_SECONDS` once `cancelled`
        is set.
        """
        if not self.free_threads.acquire(blocking=False):
            after()
            raise Busy
        deadline = time.monotonic() + seconds
        running = self.threads.submit(work)
        running.add_done_callback(lambda _: (self.free_threads.release(), after()))
        while (seconds_left := deadline - time.monotonic()) > 0:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if wait([running], timeout=min(POLL_SECONDS, seconds_left)).done:
                return running.result()
        raise Late
