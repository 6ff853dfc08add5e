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

from ..errors import Cancelled, JobError
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
        self.loras: tuple[Any, ...] = ()  # that its pictures are drawn with, once they are opened
        self.cancelled = threading.Event()
        self.stage = Stage.OPENING
        self.drawing = False  # the inference thread is in the pipeline
        self.in_call = [self]  # whose pictures the pipeline's present call draws
        self.alone = False  # a call that it shared failed: it is drawn by itself
        self.step = 0  # done, of all pictures
        self.at = 0, 0, 1  # the step of the present call, its first picture from 0, and how many it draws of the job's
        self.expect(request.num_inference_steps)
        self.step_seconds: float | None = None  # mean of the steps that followed another one
        self.intervals, self.last_step = 0, 0.0
        self.previewer = previewer  # where the job asks for previews
        self.preview: str | None = None  # a JPEG in base64, until it is taken

    async def on(self, threads: Executor, work: Callable, *arguments: Any) -> Any:
        """What the work returns on one of the threads.

        Stopped meanwhile, it passes the stop on at once, but waits for the end of the drawing where that is what the
        work is at: a load goes on for the next job, a drawing never runs beside it. A call that draws for others too
        goes on for them: of its jobs, only the last one stopped waits.
        """
        running = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.cancelled.set()
            # After the flag: work that is not drawing yet will see it before it does.
            while self.drawn_for_nobody() and not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
            running.add_done_callback(lambda one: one.cancelled() or one.exception())  # or asyncio reports it as lost
            running.cancel()  # where it has not begun it never will
            raise

    def drawn_for_nobody(self) -> bool:
        """Whether the inference thread is in a call all of whose jobs have been stopped."""
        return self.drawing and all(job.cancelled.is_set() for job in self.in_call)

    def share_call(self, leader: "Job") -> None:
        """Be drawn in the call of another job. Raises `Cancelled` where the job has been stopped."""
        self.in_call = leader.in_call
        self.in_call.append(self)
        self.enter(Stage.DRAWING)

    def draw_alone(self) -> None:
        """A call that it shared has failed: from the start, by itself."""
        self.alone, self.step, self.at = True, 0, (0, 0, 1)

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
        self.drawing, self.in_call = False, [self]

    def drawing_seconds(self) -> float:
        return time.monotonic() - self.drawing_since

    def picture_begins(self) -> None:
        self.last_step = 0.0

    def expect(self, steps: int) -> None:
        """Each picture takes so many steps."""
        self.steps_a_picture, self.total = steps, steps * self.request.num_images

    def step_ends(self, step: int, steps: int, picture: int, at_once: int = 1) -> None:
        """`step` of `steps` is done, both counted from 1, of so many pictures from number `picture`, from 0, on."""
        now = time.monotonic()
        self.expect(steps)
        self.step, self.at = picture * steps + step * at_once, (step, picture, at_once)
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
            step, picture, at_once = self.at
            where = f"after {step} of {self.steps_a_picture} steps"
            if self.request.num_images > 1:
                those = f"picture {picture + 1}" if at_once == 1 else f"pictures {picture + 1} to {picture + at_once}"
                where += f" of {those} of {self.request.num_images}"
        return JobError("deadline_exceeded", f"the job's {self.limit:g} seconds ran out {where}")
