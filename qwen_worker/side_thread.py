"""Work that cannot be interrupted, waited for only so long: a name being resolved, a server that does not answer.

It runs on a thread of its own, which is left behind when the wait ends and ends when the work does. Knows nothing of
what the work is.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from .errors import Cancelled

POLL = 0.1  # seconds between looks at a cancellation
Result = TypeVar("Result")


class Late(Exception):
    """The work was not done in time."""


class Busy(Exception):
    """As many threads as may be are still behind earlier work."""


def within(
    seconds: float,
    work: Callable[[], Result],
    slots: threading.BoundedSemaphore,
    cancelled: threading.Event | None = None,
) -> Result:
    """What `work` returns or raises. `slots` bounds the threads that are left behind.

    Raises `Late` after `seconds`, `Busy` when no slot is free, `Cancelled` within `POLL` once `cancelled` is set.
    """
    if not slots.acquire(blocking=False):
        raise Busy
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    ends = time.monotonic() + seconds

    def body():
        try:
            outcome.put((work(), None))
        except Exception as error:  # noqa: BLE001  carried over to the waiting thread, which raises it
            outcome.put((None, error))
        finally:
            slots.release()

    threading.Thread(target=body, name="side", daemon=True).start()
    while time.monotonic() < ends:
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        with suppress(queue.Empty):
            result, error = outcome.get(timeout=min(POLL, max(0.001, ends - time.monotonic())))
            if error is not None:
                raise error
            return result
    raise Late
