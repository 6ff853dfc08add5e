"""The jobs that wait for the inference thread, in the order in which they came, and those that it is drawing.

Each turn is the oldest job's, so no job waits for more turns than there are older jobs. A job that an older one takes
along leaves the queue at that one's end, before its own turn comes. Knows nothing of how a picture is drawn.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled
from ..jobs.job import Job, Stage
from ..jobs.reply import Drawn
from ..lora.file import LoraUse
from ..pictures.inputs import Canvas


@dataclass(eq=False)
class DrawingJob:
    """A job with what it is drawn from, on its way through the inference thread."""

    job: Job
    canvas: Canvas
    loras: tuple[LoraUse, ...] = ()
    alone: bool = False  # a call that it shared has failed: it is drawn by itself
    outcome: "Future[Drawn]" = field(default_factory=Future)


class WaitingQueue:
    """`thread`: an executor of one thread, which others may use beside."""

    def __init__(self, thread: Executor):
        self.thread, self.lock = thread, threading.Lock()
        self.waiting: list[DrawingJob] = []
        self.in_call: list[DrawingJob] = []  # whose pictures the pipeline is drawing

    def submit(self, entry: DrawingJob, work: Callable[..., Drawn], *arguments: Any) -> "Future[Drawn]":
        """`work(entry, *arguments)` once it is the entry's turn; what comes of it, or of an older job's call."""
        with self.lock:
            self.waiting.append(entry)
        done = self.thread.submit(self.take_turn, entry, work, arguments)
        done.add_done_callback(functools.partial(pass_on, entry))
        return entry.outcome

    def take_turn(self, entry: DrawingJob, work: Callable[..., Drawn], arguments: tuple) -> Drawn | None:
        """On the thread: the work, unless its job has left the queue or has been stopped."""
        if not self.remove(entry) or not entry.outcome.set_running_or_notify_cancel():
            return None
        try:
            return work(entry, *arguments)
        finally:
            self.leave_call(entry)

    def enter_call(self, entry: DrawingJob) -> None:
        """The pipeline is about to draw the job's pictures. Raises `Cancelled` where the job has been stopped."""
        with self.lock:
            self.in_call.append(entry)
        entry.job.enter(Stage.DRAWING)

    def leave_call(self, entry: DrawingJob) -> None:
        with self.lock:
            self.in_call = [other for other in self.in_call if other is not entry]

    def draws_for_nobody(self, job: Job) -> bool:
        """Whether the pipeline is at the job's pictures and has no other job's that still runs.

        A stopped job waits for that call's end, so that no other drawing runs beside it; a call that draws for others
        too goes on for them.
        """
        with self.lock:
            jobs = [entry.job for entry in self.in_call]
        return job in jobs and all(other.cancelled.is_set() for other in jobs)

    def oldest(self, wanted: Callable[[DrawingJob], bool]) -> DrawingJob | None:
        """Of those that wait, the oldest that is wanted."""
        with self.lock:
            return next((entry for entry in self.waiting if wanted(entry)), None)

    def finish(self, entry: DrawingJob, drawn: Drawn | None) -> None:
        """End the wait of a job before its own turn: it has been drawn in another's call, or stopped."""
        if not self.remove(entry) or not entry.outcome.set_running_or_notify_cancel():
            return
        if entry.job.cancelled.is_set() or drawn is None:
            entry.outcome.set_exception(Cancelled())
        else:
            entry.outcome.set_result(drawn)

    def remove(self, entry: DrawingJob) -> bool:
        """Whether it was still there."""
        with self.lock:
            waits = entry in self.waiting
            if waits:
                self.waiting.remove(entry)
            return waits


def pass_on(entry: DrawingJob, done: "Future[Drawn | None]") -> None:
    """What came of the entry's own turn, to whom waits for it."""
    if entry.outcome.done():
        return
    if error := done.exception():
        entry.outcome.set_exception(error)
    elif drawn := done.result():
        entry.outcome.set_result(drawn)
