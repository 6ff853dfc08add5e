"""Work on side threads: what it returns or raises comes back, and a wait for it ends in time."""

import time

import pytest

from qwen_worker.errors import Cancelled
from qwen_worker.network.side_threads import Busy, Late, SideThreads

from ..support.patience import wait_until


def test_what_the_work_returns_or_raises_comes_back():
    threads = SideThreads(2)
    assert threads.run_within(5, lambda: 7) == 7
    for error in (TimeoutError("the work's own"), ValueError("bad"), Late("inner")):
        with pytest.raises(type(error)) as caught:
            threads.run_within(5, lambda error=error: (_ for _ in ()).throw(error))
        assert caught.value is error


def test_a_wait_ends_at_its_time_or_at_a_stop_and_the_thread_is_free_when_the_work_is_over(gate):
    threads, over, again, cancelled = SideThreads(1), gate(), gate(), gate()
    started = time.monotonic()
    with pytest.raises(Late):
        threads.run_within(0.2, lambda: over.wait())
    assert time.monotonic() - started >= 0.2
    with pytest.raises(Busy):
        threads.run_within(60, lambda: None)
    over.set()

    def is_free():
        try:
            return threads.run_within(60, lambda: True)
        except Busy:
            return False

    wait_until(is_free)
    with pytest.raises(Cancelled):
        threads.run_within(60, lambda: cancelled.set() or again.wait(), cancelled)
