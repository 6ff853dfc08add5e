"""The jobs that wait for the inference thread, in the order in which they came.

Each turn is the oldest job's, so no job waits for more turns than there are older jobs. One that an older job takes
along leaves the line at that one's end, before its own turn comes. Knows nothing of what is done in a turn.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled
from ..jobs.job import Job


@dataclass(eq=False)
class Turn:
    """A job's place in the line, and what will come of it."""

    job: Job
    outcome: Future = field(default_factory=Future)


class Line(Executor):
    """For work whose first argument is its job. `thread`: an executor of one thread, which others may use beside."""

    def __init__(self, thread: Executor):
        self.thread, self.lock = thread, threading.Lock()
        self.turns: list[Turn] = []

    def submit(self, work: Callable, job: Job, /, *arguments: Any) -> Future:
        turn = Turn(job)
        with self.lock:
            self.turns.append(turn)
        self.thread.submit(self.take, turn, work, arguments).add_done_callback(functools.partial(pass_on, turn))
        return turn.outcome

    def take(self, turn: Turn, work: Callable, arguments: tuple) -> Any:
        """On the thread: the turn's work, unless its job has left the line or has been stopped."""
        if self.remove(turn) and turn.outcome.set_running_or_notify_cancel():
            return work(turn.job, *arguments)
        return None

    def first(self, wanted: Callable[[Job], bool]) -> Turn | None:
        """Of the turns that wait, the oldest whose job is wanted."""
        with self.lock:
            return next((turn for turn in self.turns if wanted(turn.job)), None)

    def leave(self, turn: Turn, result: Any) -> None:
        """End a turn that has not come yet: its job has been done in another's, or stopped."""
        if not self.remove(turn) or not turn.outcome.set_running_or_notify_cancel():
            return
        if turn.job.cancelled.is_set():
            turn.outcome.set_exception(Cancelled())
        else:
            turn.outcome.set_result(result)

    def remove(self, turn: Turn) -> bool:
        """Whether it was still there."""
        with self.lock:
            waits = turn in self.turns
            if waits:
                self.turns.remove(turn)
            return waits


def pass_on(turn: Turn, done: Future) -> None:
    """What came of the turn's own work, to whom waits for it."""
    if turn.outcome.done():
        return
    if error := done.exception():
        turn.outcome.set_exception(error)
    else:
        turn.outcome.set_result(done.result())
