"""How long a job may take, and whether it can make it: by the steps that this worker has timed. Pure.

Knows nothing of how a job is ended (`job.py`).
"""

import math
from collections import defaultdict, deque
from typing import Any

from ..errors import JobError
from .request import Drawing

# The platform ends a job at its limit without a word: the worker's own end comes this much before, to say why.
MARGIN_SECONDS, MARGIN_SHARE = 2.0, 0.1
KEPT = 8  # timings of one kind of job
CLEARLY = 1.1  # a job is refused when even this much faster it would not make it


def limit_of(job: dict, standard: float | None) -> float | None:
    """Seconds that the job may take: its `policy.executionTimeout` (milliseconds), less a margin, else the standard."""
    policy = job.get("policy")
    timeout = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        return standard
    seconds = timeout / 1000
    return round(seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds), 3)


def kind_of(request: Drawing, size: tuple[int, int], images: int) -> tuple:
    """What jobs have in common that take the same time a step; `images`: their input pictures."""
    return request.task, size, images, request.guidance_scale > 1, request.preset


class Paces:
    """Seconds a step and seconds beside the steps, by kind of job; of several timings the best."""

    def __init__(self):
        self.steps: dict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.rest: dict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))

    def record(self, kind: Any, step_seconds: float | None, pictures: int, steps: int, seconds: float) -> None:
        """A job of this kind drew so many pictures of so many steps each in `seconds`."""
        if step_seconds is not None:
            self.steps[kind].append(step_seconds)
            self.rest[kind].append(max(0.0, seconds / pictures - steps * step_seconds))

    def require_time(
        self, kind: Any, pictures: int, steps: int, seconds: float | None, strength: float | None = 1.0
    ) -> None:
        """Refuse what clearly cannot be drawn in `seconds`, naming the num_inference_steps that could.

        `steps`: that a picture really takes, `strength` of num_inference_steps; None where the schedule is fixed.
        """
        if seconds is None or kind not in self.steps:
            return
        step, rest = min(self.steps[kind]), min(self.rest[kind])
        needed = pictures * (rest + steps * step)
        if needed <= seconds * CLEARLY:
            return
        feasible = math.floor((seconds / pictures - rest) / step)
        if feasible < 1:
            advice = "not even one step fits"
        elif strength is None:
            advice = "the checkpoint's schedule is fixed"
        else:
            most = math.floor((feasible + 1e-9) / strength)
            advice = f"num_inference_steps of at most {most} would make it"
        raise JobError(
            "deadline_exceeded",
            f"{steps} steps take about {needed:.1f} seconds and {max(0.0, seconds):.1f} are left; {advice}",
        )
