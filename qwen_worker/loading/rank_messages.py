"""What the worker and the second card's process tell each other, beside tensors: loads, jobs, and how each draws.

Knows nothing of how it is sent.
"""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..model_settings import Speedup
from ..settings import Settings
from ..speed.speedups import COMPILED_LORAS, ON, Speed
from ..speed.step_cache import CachedSteps

ON_SECOND = "on the second card"  # what the words of its failures begin with
SEND = "send"  # asks for the prediction of the last pass, which is the answer


@dataclass(frozen=True)
class TransformerLoad:
    """What the second process loads. `folder`: a prepared checkpoint's; `loras`: the endpoint's own; `off`: what has
    failed before, and why.
    """

    model: str
    checkpoint: Checkpoint
    plan: Plan
    folder: Path | None
    settings: Settings
    loras: tuple[LoraUse, ...]
    off: dict[str, str]


@dataclass(frozen=True)
class JobSetup:
    """How a job's passes are computed. `cached_steps`: of the picture if a step cache serves it."""

    model: str
    loras: tuple[LoraUse, ...]
    streamed_loras: bool
    lora_rank: int
    compiled: bool
    cached_steps: CachedSteps | None
    speedups: frozenset[Speedup]


@dataclass(frozen=True)
class SpeedReport:
    """Of the second card's speed-ups: `states` and `failures` as `Speed` has them."""

    states: dict[Speedup, str]
    failures: dict[str, str]

    @classmethod
    def of(cls, speed: Speed) -> "SpeedReport":
        return cls(dict(speed.states), dict(speed.failures))

    def apply(self, speed: Speed) -> None:
        """Have what the second card lacks stand down on the first too: both draw in one way."""
        for speedup in Speedup:
            if speed.has(speedup) and self.states.get(speedup) != ON:
                speed.stand_down(speedup, f"{ON_SECOND}: {self.states.get(speedup)}")
        if COMPILED_LORAS in self.failures and COMPILED_LORAS not in speed.failures:
            speed.stand_down_loras(f"{ON_SECOND}: {self.failures[COMPILED_LORAS]}")
