"""How long a job may take, and whether it can finish in that time, by the steps that this worker has timed. Pure.

Knows nothing of how a job is ended (`job.py`).
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import JobError
from .request import Drawing
from .tasks import Layers

if TYPE_CHECKING:
    from pydantic import JsonValue

# The platform ends a job at its limit without a word. The worker ends it this much earlier, so that it can say why.
MARGIN_SECONDS, MARGIN_SHARE = 2.0, 0.1
TIMINGS_KEPT = 8  # of each kind of job
TOLERANCE = 1.1  # a job is refused where it needs more than this many times the seconds that are left


class Kind(NamedTuple):
    """What jobs have in common whose steps take the same time."""

    task: str
    size: tuple[int, int]  # width and height in pixels
    images: int  # input pictures
    guided: bool
    preset: str | None
    controls: int = 0  # control pictures
    reference_pixels: int | None = None  # that each input picture has at most, where the job says so


def limit_of(job: "Mapping[str, JsonValue]", default: float | None) -> float | None:
    """The seconds that the job may take: its `policy.executionTimeout` (milliseconds) less a margin, else the default.

    `job`: as the SDK hands it out. None: the job may take as long as it likes.
    """
    policy = job.get("policy")
    timeout = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        return default
    seconds = timeout / 1000
    return round(seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds), 3)


def kind_of(request: Drawing, size: tuple[int, int], images: int) -> Kind:
    """The kind of a job that draws in `size` from so many input pictures."""
    layers = request.num_layers if isinstance(request, Layers) else 0  # drawn as the input pictures are looked at
    controls = len(getattr(request, "controls", ()))  # each has the ControlNet compute beside the transformer
    is_guided, most = request.guidance_scale > 1, getattr(request, "reference_pixels", None)
    return Kind(request.task, size, images + layers, is_guided, request.preset, controls, most)


class Paces:
    """By kind of job, the seconds of a step and the seconds beside the steps; of several timings the best counts."""

    def __init__(self):
        self.step_seconds: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=TIMINGS_KEPT))
        self.other_seconds: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=TIMINGS_KEPT))

    def record(self, kind: Kind, step_seconds: float | None, pictures: int, steps: float, seconds: float) -> None:
        """Keep the timings of a job that drew so many pictures, of so many whole steps each, in `seconds`.

        `step_seconds`: the mean of its steps; None, which keeps nothing, where too few were timed.
        """
        if step_seconds is not None:
            self.step_seconds[kind].append(step_seconds)
            self.other_seconds[kind].append(max(0.0, seconds / pictures - steps * step_seconds))

    def require_time(
        self,
        kind: Kind,
        calls: int,
        steps: int,
        seconds: float | None,
        strength: float = 1.0,
        whole_steps: float | None = None,
    ) -> None:
        """Refuse what clearly cannot be drawn in `seconds`, and name the num_inference_steps that could.

        `calls`: of the pipeline, one after the other. `steps`: those that each call really takes, which is `strength`
        of num_inference_steps. `whole_steps`: as how many they count in time, None for all. Raises `JobError`
        deadline_exceeded.
        """
        if seconds is None or kind not in self.step_seconds:
            return
        step_seconds, other_seconds = min(self.step_seconds[kind]), min(self.other_seconds[kind])
        step_seconds *= 1 if whole_steps is None else whole_steps / steps
        needed = calls * (other_seconds + steps * step_seconds)
        if needed <= seconds * TOLERANCE:
            return
        feasible = math.floor((seconds / calls - other_seconds) / step_seconds)
        if feasible < 1:
            advice = "not even one step fits"
        else:
            most = math.floor((feasible + 1e-9) / strength)
            advice = f"num_inference_steps of at most {most} would make it"
        raise JobError(
            "deadline_exceeded",
            f"{steps} steps take about {needed:.1f} seconds and {max(0.0, seconds):.1f} are left; {advice}",
        )
