"""The jobs that wait for the inference thread, in the order in which they came, and those that it is drawing.

Each turn is the oldest job's, so no job waits for more turns than there are older jobs. A job that shares the call of
an older one leaves the queue when that call ends, before its own turn. Knows nothing of how a picture is drawn.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled
from ..jobs.job import Job, Stage
from ..jobs.reply import DrawingResult
from ..loading.controlnets import ControlNets
from ..lora.file import LoraUse
from ..pictures.canvas import Canvas


@dataclass(eq=False)
class DrawingJob:
    """A job with what it is drawn from, on its way through the inference thread."""

    job: Job
    canvas: Canvas
    loras: tuple[LoraUse, ...] = ()
    controlnets: ControlNets | None = None  # where the job is drawn by one
    alone: bool = False  # a call that it shared has failed: its pictures share no call any more
    outcome: "Future[DrawingResult]" = field(default_factory=Future)


class WaitingQueue:
    """`thread`: an executor of one thread, to which others may submit work too."""

    def __init__(self, thread: Executor):
        self.thread, self.lock = thread, threading.Lock()
        self.waiting: list[DrawingJob] = []
        self.in_call: list[DrawingJob] = []  # whose pictures the pipeline is drawing

    def submit(self, entry: DrawingJob, work: Callable[..., DrawingResult], *arguments: Any) -> "Future[DrawingResult]":
        """The outcome of `work(entry, *arguments)` once it is the entry's turn, or of an older job's call."""
        with self.lock:
            self.waiting.append(entry)
        turn = self.thread.submit(self.run_turn, entry, work, arguments)
        turn.add_done_callback(functools.partial(set_outcome, entry))
        return entry.outcome

    def run_turn(
        self, entry: DrawingJob, work: Callable[..., DrawingResult], arguments: tuple[Any, ...]
    ) -> DrawingResult | None:
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

    def has_abandoned_call(self, job: Job) -> bool:
        """Whether the pipeline is drawing the job's pictures in a call whose jobs have all been stopped.

        A stopped job waits for the end of such a call, so that no other drawing runs beside it; a call that still draws
        for other jobs is not waited for.
        """
        with self.lock:
            jobs = [entry.job for entry in self.in_call]
        return job in jobs and all(other.cancelled.is_set() for other in jobs)

    def oldest(self, is_wanted: Callable[[DrawingJob], bool]) -> DrawingJob | None:
        """The oldest waiting entry that is wanted."""
        with self.lock:
            return next((entry for entry in self.waiting if is_wanted(entry)), None)

    def finish(self, entry: DrawingJob, drawn: DrawingResult | None) -> None:
        """End the wait of a job before its own turn: it has been drawn in an older job's call, or stopped."""
        if not self.remove(entry) or not entry.outcome.set_running_or_notify_cancel():
            return
        if entry.job.cancelled.is_set() or drawn is None:
            entry.outcome.set_exception(Cancelled())
        else:
            entry.outcome.set_result(drawn)

    def remove(self, entry: DrawingJob) -> bool:
        """Whether the entry was still waiting."""
        with self.lock:
            waits = entry in self.waiting
            if waits:
                self.waiting.remove(entry)
            return waits


def set_outcome(entry: DrawingJob, turn: "Future[DrawingResult | None]") -> None:
    """Give the outcome of the entry's own turn to whom waits for the entry's."""
    if entry.outcome.done():
        return
    if error := turn.exception():
        entry.outcome.set_exception(error)
    elif drawn := turn.result():
        entry.outcome.set_result(drawn)
