"""One drawing job while it runs: its stop, its clock, and how far it has come.

The inference thread writes, the event loop reads. Knows nothing of what drawing is, nor of the platform.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from enum import StrEnum
from typing import Any

from .errors import Cancelled, JobError
from .request import Drawing


class Stage(StrEnum):
    """Where a job is; the value is how a sentence goes on that says so."""

    OPENING = "while its input was fetched and opened"
    WAITING = "while it waited for the model"
    LOADING = "while the model was loaded"
    DRAWING = "while it was drawn"
    DELIVERING = "when the pictures were drawn, while they were encoded and sent"


class Job:
    """`limit`: seconds from now that the job may take, None for as long as it likes."""

    def __init__(self, job_id: str, request: Drawing, limit: float | None = None, previewer: Any = None):
        self.id, self.request, self.limit = job_id, request, limit
        self.started = time.monotonic()
        self.timings: dict[str, float] = {}  # seconds by stage, as the reply tells them
        self.cancelled = threading.Event()
        self.stage = Stage.OPENING
        self.drawing = False  # the inference thread is in the pipeline: a stop waits until it is out
        self.step = 0  # done, of all pictures
        self.total = request.num_inference_steps * request.num_images
        self.steps_a_picture = request.num_inference_steps
        self.step_seconds: float | None = None  # mean of the steps that followed another one
        self.intervals, self.last_step = 0, 0.0
        self.previewer = previewer  # where the job asks for previews
        self.preview: str | None = None  # a JPEG in base64, until it is taken

    async def on(self, threads: Executor, work: Callable, *arguments: Any) -> Any:
        """What the work returns on one of the threads.

        Stopped meanwhile, it passes the stop on at once, but waits for the end of the drawing where that is what the
        work is at: a load goes on for the next job, a drawing never runs beside it.
        """
        running = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.cancelled.set()
            # After the flag: work that is not drawing yet will see it before it does.
            while self.drawing and not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
            running.add_done_callback(lambda one: one.cancelled() or one.exception())  # or asyncio reports it as lost
            running.cancel()  # where it has not begun it never will
            raise

    def enter(self, stage: Stage) -> None:
        """Raises `Cancelled` where the job has been stopped."""
        # The flags are set before the look at the stop, and the stop before the look at them: one sees the other.
        self.stage = stage
        self.drawing = stage is Stage.DRAWING
        self.drawing_since = time.monotonic()
        self.require_running()

    def require_running(self) -> None:
        """Raises `Cancelled` where the job has been stopped."""
        if self.cancelled.is_set():
            raise Cancelled

    def leave_drawing(self) -> None:
        self.drawing = False

    def drawing_seconds(self) -> float:
        return time.monotonic() - self.drawing_since

    def picture_begins(self) -> None:
        self.last_step = 0.0

    def step_ends(self, step: int, steps: int, picture: int) -> None:
        """`step` of `steps` of this picture is done, both counted from 1, `picture` from 0. Raises `Cancelled`."""
        now = time.monotonic()
        self.steps_a_picture, self.total = steps, steps * self.request.num_images
        self.step = picture * steps + step
        if self.last_step:
            self.intervals += 1
            seconds = now - self.last_step
            self.step_seconds = (self.step_seconds or 0.0) + (seconds - (self.step_seconds or 0.0)) / self.intervals
        self.last_step = now
        self.require_running()

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
            done = self.step % self.steps_a_picture
            picture = min(self.step // self.steps_a_picture + 1, self.request.num_images)
            if self.step == self.total:
                done = self.steps_a_picture
            where = f"after {done} of {self.steps_a_picture} steps"
            where += f" of picture {picture} of {self.request.num_images}" if self.request.num_images > 1 else ""
        return JobError("deadline_exceeded", f"the job's {self.limit:g} seconds ran out {where}")
