"""Ctrl-C held back while a request is on its way whose answer says what it made. Knows nothing of requests."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held() -> Iterator[None]:
    """Raises `KeyboardInterrupt` at the block's end for a signal that came within it; a second one is not held."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def hold(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, hold) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
