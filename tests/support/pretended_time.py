"""Coroutines in pretended time: where all of them wait, the clock goes on to the next moment that one waits for.

An hour passes at once, and exactly, however busy the machine is. For coroutines alone: what threads and sockets do is
not waited for.
"""

import asyncio
import selectors


class Clock(selectors.SelectSelector):
    """Where an event loop would sleep until its next timer, the time passes instead."""

    seconds = 0.0

    def select(self, timeout=None):
        events = super().select(0)
        assert events or timeout is not None, "every coroutine waits, and none of them for a time"
        if not events:
            self.seconds += max(0.0, timeout)
        return events


class PretendedLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self):
        return self.clock.seconds


def run_pretended(coroutine):
    """(what the coroutine returns, the seconds that have passed for it)."""
    with asyncio.Runner(loop_factory=PretendedLoop) as runner:
        loop = runner.get_loop()
        return runner.run(coroutine), loop.time()
