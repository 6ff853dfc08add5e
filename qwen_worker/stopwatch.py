"""The seconds that each stage of a job or of a load takes. Knows nothing of the stages."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Generator[None]:
    """Add the seconds that the block takes to `timings[stage]`, also when the block raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - started


class Stopwatch:
    """The seconds of each stage on the thread that makes the stopwatch; stages of other threads are not counted.

    A stage that begins inside another stops the outer one's clock until it ends: each second counts for one stage.
    """

    def __init__(self):
        self.thread = threading.get_ident()
        self.seconds: dict[str, float] = {}
        self.open_stages: list[str] = []  # the innermost last
        self.lap_started = 0.0

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """Count the block's seconds for the stage `name`."""
        if threading.get_ident() != self.thread:
            yield
            return
        self.lap()
        self.open_stages.append(name)
        try:
            yield
        finally:
            self.lap()
            self.open_stages.pop()

    @property
    def stage(self) -> str:
        """The innermost stage that is going on, or ""; for any thread."""
        return next(reversed(tuple(self.open_stages)), "")

    def lap(self) -> None:
        """Count the seconds since the last lap for the innermost stage, and start a new lap."""
        now = time.perf_counter()
        if self.open_stages:
            self.seconds[self.open_stages[-1]] = self.seconds.get(self.open_stages[-1], 0.0) + now - self.lap_started
        self.lap_started = now

    def report(self) -> dict[str, float]:
        """By stage, its seconds so far, rounded to milliseconds."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
