"""Where the seconds of a job or of a load go. Knows nothing of what is timed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that the block takes to `timings[stage]`, also when it raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - started


class Stopwatch:
    """The stages of a load on the thread that makes the stopwatch; stages of other threads do not count.

    A stage begun inside another stops the outer one's clock until it ends: each second counts for one stage.
    """

    def __init__(self):
        self.thread = threading.get_ident()
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self.thread:
            yield
            return
        self.lap()
        self.running.append(name)
        try:
            yield
        finally:
            self.lap()
            self.running.pop()

    def lap(self) -> None:
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + now - self.since
        self.since = now

    def report(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
