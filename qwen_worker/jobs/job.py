"""One drawing job's life: its stop, its clock, and how far it has come.

The inference thread writes, the event loop reads. Knows nothing of how a picture is drawn, of other jobs, nor of the
platform.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

from ..errors import Cancelled, JobError, hide_secrets
from .request import Drawing

Result = TypeVar("Result")


class Stage(StrEnum):
    """Where a job is. The value ends the sentence "the job's seconds ran out ..."."""

    OPENING = "while its input was fetched and opened"
    CHECKING = "while its pictures were checked"
    REWRITING = "while its prompt was rewritten"
    WAITING = "while it waited for the model"
    LOADING = "while the model was loaded"
    DRAWING = "while it was drawn"
    DELIVERING = "when the pictures were drawn, while they were encoded and sent"


class Job:
    """`limit_seconds`: how long the job may take from now on; None for as long as it likes.

    `warnings`: what was noticed of it before it began, as `warn` takes it. `takes_stand_ins`: whether its caller reads
    a reply that may hold a stand-in; clients of other APIs know no field that says so, and get an error.
    """

    def __init__(
        self,
        job_id: str,
        request: Drawing,
        limit_seconds: float | None = None,
        warnings: Iterable[str] = (),
        takes_stand_ins: bool = True,
    ):
        self.id, self.request, self.limit_seconds = job_id, request, limit_seconds
        self.instruction = request.instruction  # the text that the model gets
        self.takes_stand_ins = takes_stand_ins
        self.started = time.monotonic()
        self.timings: dict[str, float] = {}  # seconds by stage, as the reply shows them
        self.warnings: list[str] = []  # as the reply shows them
        self.cancelled = threading.Event()
        self.stage, self.stage_started = Stage.OPENING, self.started
        self.steps_done = 0  # of all pictures together
        self.whole_steps_done = 0.0  # the same as they count in time (`Drawing.whole_steps`)
        self.call_pictures = range(1)  # the numbers, from 0, of the job's pictures in the pipeline's present call
        self.expect_steps(request.num_inference_steps)
        self.step_seconds: float | None = None  # mean of the timed whole steps of one picture
        self.timed_steps, self.last_step_ended = 0.0, 0.0  # a call's first step is not timed; 0.0 before its end
        self.describe_load: Callable[[], dict[str, Any]] = dict  # what the load tells of itself that the job waits for
        self.preview: str | None = None  # a JPEG in base64, until it is popped
        for sentence in warnings:
            self.warn(sentence)

    @asynccontextmanager
    async def within_limit(self) -> AsyncGenerator[None]:
        """End the block at the job's limit as a stop would. Raises `JobError` deadline_exceeded then."""
        clock = asyncio.timeout(self.limit_seconds)
        try:
            async with clock:
                yield
        except TimeoutError:
            if not clock.expired():
                raise
            raise self.deadline_error() from None

    async def run_on(self, threads: Executor, work: Callable[..., Result], *arguments: object) -> Result:
        """What `work(*arguments)` returns or raises on one of the threads. A stop does not wait for the work."""
        return await self.wait_for(threads.submit(work, *arguments))

    async def wait_for(self, future: "Future[Result]", must_wait: Callable[[], bool] = lambda: False) -> Result:
        """What submitted work returns or raises.

        At a stop the `CancelledError` goes on as soon as `must_wait()` is False or the work is over.
        """
        running = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The event loop flags the stop before `must_wait` asks whether the job is being drawn. The inference thread
            # flags that it draws the job before it asks for the stop. So one of the two sees the other's flag.
            self.cancelled.set()
            while must_wait() and not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    continue
            # The callback retrieves the work's exception: asyncio would report one that nobody has retrieved.
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.cancel()  # work that has not begun never will
            raise

    def warn(self, sentence: str) -> None:
        """Tell the caller, in the reply, what was understood and not done as asked: the field, what is done instead.

        From any thread. The same sentence counts once, so that a job which is drawn once more says it once.
        """
        sentence = hide_secrets(sentence)
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def draw_own_words(self, reason: str) -> None:
        """Have the model get the caller's own words, although the job asks for rewritten ones; the caller is told."""
        self.instruction = self.request.instruction
        self.warn(f"prompt_extend: the prompt is drawn as it is, because {reason}")

    def enter(self, stage: Stage) -> None:
        """Begin the stage. Raises `Cancelled` where the job has been stopped."""
        self.stage, self.stage_started = stage, time.monotonic()
        self.require_running()

    def require_running(self) -> None:
        """Raises `Cancelled` where the job has been stopped."""
        if self.cancelled.is_set():
            raise Cancelled

    def stage_seconds(self) -> float:
        """How long the present stage has lasted."""
        return time.monotonic() - self.stage_started

    def seconds_to_limit(self) -> float | None:
        """None where the job has no limit."""
        return self.limit_seconds and self.started + self.limit_seconds - time.monotonic()

    def begin_drawing(self, first: int, count: int = 1) -> None:
        """The pipeline begins a call for `count` of the job's pictures, from number `first` on."""
        self.call_pictures, self.last_step_ended = range(first, first + count), 0.0

    def start_over(self) -> None:
        """Forget the steps that are done: all pictures will be drawn anew from their first step."""
        self.steps_done, self.whole_steps_done, self.call_pictures = 0, 0.0, range(1)

    def expect_steps(self, steps: int) -> None:
        """Each of the job's pictures will take so many steps."""
        self.steps_per_picture, self.total_steps = steps, steps * self.request.num_images

    def end_step(self, step: int, steps: int) -> None:
        """Step number `step` of the present call's `steps` is done, counted from 1.

        That is, for the host: a card still has up to a pass of the transformer in its queue. As many wait after each
        step, so that the host's clock tells how long a step takes.
        """
        now, pictures, first = time.monotonic(), len(self.call_pictures), self.call_pictures.start
        whole_steps, whole = self.request.whole_steps, self.request.whole_steps(steps, step)
        self.expect_steps(steps)
        self.steps_done = first * steps + step * pictures
        self.whole_steps_done = first * whole_steps(steps) + whole * pictures
        if self.last_step_ended:
            share = whole - whole_steps(steps, step - 1)  # of a whole step
            self.timed_steps += share
            seconds, mean = (now - self.last_step_ended) / pictures, self.step_seconds or 0.0
            self.step_seconds = mean + (seconds - share * mean) / self.timed_steps
        self.last_step_ended = now

    def pop_preview(self) -> str | None:
        """The latest preview, a JPEG in base64, once."""
        preview, self.preview = self.preview, None
        return preview

    def drawing_seconds_left(self) -> float | None:
        """An estimate for the steps that are not yet done; None until a step has been timed."""
        whole_steps = self.request.num_images * self.request.whole_steps(self.steps_per_picture)
        return None if self.step_seconds is None else (whole_steps - self.whole_steps_done) * self.step_seconds

    def deadline_error(self) -> JobError:
        """The failure of a job whose limit ran out: where it was, and how many steps were done."""
        where = self.stage.value
        if self.stage is Stage.DRAWING:
            first, last = self.call_pictures.start + 1, self.call_pictures.stop
            step = (self.steps_done - self.call_pictures.start * self.steps_per_picture) // len(self.call_pictures)
            where = f"after {max(0, step)} of {self.steps_per_picture} steps"
            if self.request.num_images > 1:
                pictures = f"picture {first}" if first == last else f"pictures {first} to {last}"
                where += f" of {pictures} of {self.request.num_images}"
        return JobError("deadline_exceeded", f"the job's {self.limit_seconds:g} seconds ran out {where}")
