"""One drawing job's life: its stop, its clock, and how far it has come.

The inference thread writes, the event loop reads. Knows nothing of what drawing is, of other jobs, nor of the platform.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TypeVar

from ..errors import Cancelled, JobError
from .request import Drawing

Result = TypeVar("Result")


class Stage(StrEnum):
    """Where a job is; the value is how a sentence goes on that says so."""

    OPENING = "while its input was fetched and opened"
    WAITING = "while it waited for the model"
    LOADING = "while the model was loaded"
    DRAWING = "while it was drawn"
    DELIVERING = "when the pictures were drawn, while they were encoded and sent"


class Job:
    """`limit`: seconds from now that the job may take, None for as long as it likes."""

    def __init__(self, job_id: str, request: Drawing, limit: float | None = None):
        self.id, self.request, self.limit = job_id, request, limit
        self.started = time.monotonic()
        self.timings: dict[str, float] = {}  # seconds by stage, as the reply tells them
        self.cancelled = threading.Event()
        self.stage, self.stage_since = Stage.OPENING, self.started
        self.step = 0  # steps that are done, of all pictures
        self.pictures = range(1)  # those of the job's pictures, from 0, that are being drawn
        self.expect(request.num_inference_steps)
        self.step_seconds: float | None = None  # mean of the steps that followed another one
        self.intervals, self.last_step = 0, 0.0
        self.preview: str | None = None  # a JPEG in base64, until it is taken

    @asynccontextmanager
    async def within_limit(self) -> AsyncIterator[None]:
        """Past the job's limit what is within is ended as by a stop; raises `JobError` deadline_exceeded then."""
        try:
            async with asyncio.timeout(self.limit) as clock:
                yield
        except TimeoutError:
            if not clock.expired():
                raise
            raise self.out_of_time() from None

    async def on(self, threads: Executor, work: Callable[..., Result], *arguments: object) -> Result:
        """What the work returns on one of the threads. Stopped meanwhile, it passes the stop on at once."""
        return await self.outcome_of(threads.submit(work, *arguments))

    async def outcome_of(self, future: "Future[Result]", must_wait: Callable[[], bool] = lambda: False) -> Result:
        """What comes of work that has been submitted.

        Stopped meanwhile, it passes the stop on once `must_wait()` is False or the work is over.
        """
        running = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The stop is flagged before `must_wait` looks for drawing, and drawing is flagged before it looks for the
            # stop: one of the two threads sees the other's flag.
            self.cancelled.set()
            while must_wait() and not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
            # asyncio reports an exception that nobody has asked for.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.cancel()  # where it has not begun it never will
            raise

    def enter(self, stage: Stage) -> None:
        """Raises `Cancelled` where the job has been stopped."""
        self.stage, self.stage_since = stage, time.monotonic()
        self.require_running()

    def require_running(self) -> None:
        """Raises `Cancelled` where the job has been stopped."""
        if self.cancelled.is_set():
            raise Cancelled

    def stage_seconds(self) -> float:
        """How long the present stage has lasted."""
        return time.monotonic() - self.stage_since

    def seconds_to_limit(self) -> float | None:
        """None where the job has no limit."""
        return self.limit and self.started + self.limit - time.monotonic()

    def begin_drawing(self, first: int, count: int = 1) -> None:
        """The pipeline begins a call for `count` of the job's pictures, from number `first` on."""
        self.pictures, self.last_step = range(first, first + count), 0.0

    def start_over(self) -> None:
        """What has been drawn is lost: all pictures will be drawn from their first step."""
        self.step, self.pictures = 0, range(1)

    def expect(self, steps: int) -> None:
        """Each picture takes so many steps."""
        self.steps_a_picture, self.total = steps, steps * self.request.num_images

    def step_ends(self, step: int, steps: int) -> None:
        """`step` of `steps` of the present call is done, both counted from 1."""
        now, at_once = time.monotonic(), len(self.pictures)
        self.expect(steps)
        self.step = self.pictures.start * steps + step * at_once
        if self.last_step:
            self.intervals += 1
            seconds = (now - self.last_step) / at_once
            self.step_seconds = (self.step_seconds or 0.0) + (seconds - (self.step_seconds or 0.0)) / self.intervals
        self.last_step = now

    def take_preview(self) -> str | None:
        """The latest preview, once."""
        preview, self.preview = self.preview, None
        return preview

    def seconds_left(self) -> float | None:
        """Of the steps still to go; None until two have been timed."""
        return None if self.step_seconds is None else (self.total - self.step) * self.step_seconds

    def out_of_time(self) -> JobError:
        """The failure of a job whose limit ran out, with how far it came."""
        where = self.stage.value
        if self.stage is Stage.DRAWING:
            first, last = self.pictures.start + 1, self.pictures.stop
            step = (self.step - self.pictures.start * self.steps_a_picture) // len(self.pictures)
            where = f"after {max(0, step)} of {self.steps_a_picture} steps"
            if self.request.num_images > 1:
                drawn = f"picture {first}" if first == last else f"pictures {first} to {last}"
                where += f" of {drawn} of {self.request.num_images}"
        return JobError("deadline_exceeded", f"the job's {self.limit:g} seconds ran out {where}")
