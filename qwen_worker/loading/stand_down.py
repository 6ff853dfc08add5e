"""What of the worker's own a model is loaded and drawn without, because it failed, and what failed in a load.

Every name is that of a setting's value (a saving, a precision, a speed-up), or a component's with `READER` before it.
Knows nothing of how a model is loaded, and of how long a failure is remembered.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..checkpoints.classes import WEIGHTS
from ..errors import LoadError
from ..memory.footprint import Plan
from ..model_settings import Precision, Saving, Speedup
from .components import is_quantized

READER = "reader/"  # before a component's name: the worker's own reader of its weights
ROOM = "room"  # the layout was too large for what the card really had
PINNING = "pinning"  # of host memory, which is pageable then
# Parts of a build, beside the components whose weights are read.
MODULATION, SPEEDUPS, SWAP, TRIM = "modulation", "speed-ups", "swap", "/savings"
SELF_CHECK = "self-check of "  # before the name of what it found wrong
STREAMED, SWAPPED = LAYOUTS = ("streamed", "swapped")  # names of layouts that may fail
TRIMS = {"vae": (Saving.SINGLE_FRAME, Saving.CONV2D), "text_encoder": (Saving.TRIM,)}


@dataclass
class StoodDown:
    """`reasons`: by name, why it is off. `max_bytes`: of the card's memory, for a plan to count on."""

    reasons: dict[str, str] = field(default_factory=dict[str, str])
    max_bytes: int | None = None

    def savings(self, asked: frozenset[Saving]) -> frozenset[Saving]:
        """Those of the savings that are left."""
        return frozenset(saving for saving in asked if saving.value not in self.reasons)

    def layouts(self) -> frozenset[str]:
        """The precisions that are off, and `LAYOUTS`."""
        names = {*LAYOUTS, *(precision.value for precision in Precision)}
        return frozenset(names & self.reasons.keys())

    def explain(self, error: LoadError) -> LoadError:
        """The error that ends a load, with all that was tried without before; such a load is tried again later."""
        if not self.reasons:
            return error
        # The plainer way has mostly failed by the same words.
        others = [f"without {name} after {why}" for name, why in self.reasons.items() if why != error.reason]
        names = ", ".join(self.reasons)
        tried = "; ".join(others) or f"without {names} as well"
        return LoadError(f"{error.reason}; tried {tried}", transient=True)

    def is_read_by_library(self, component: str) -> bool:
        return READER + component in self.reasons


def union(several: Collection[StoodDown]) -> StoodDown:
    """What is off for at least one of several models that are planned together."""
    limits = [each.max_bytes for each in several if each.max_bytes is not None]
    reasons = {name: reason for each in several for name, reason in each.reasons.items()}
    return StoodDown(reasons, min(limits, default=None))


def find_culprits(part: str, plan: Plan, off: Mapping[str, str]) -> list[str]:
    """What of the worker's own was at work in a part of a load, and can be done without; most suspect first.

    `part`: a component, or one of the parts above. `off`: what was off already.
    """
    component = part.removesuffix(TRIM)
    suspects: list[str] = [part.removeprefix(SELF_CHECK)] if part.startswith(SELF_CHECK) else []
    if part == SPEEDUPS:
        suspects = [speedup.value for speedup in Speedup]
    elif part == MODULATION:
        suspects = [Saving.TABLE.value]
    elif part == SWAP:
        suspects = [SWAPPED]
    elif part.endswith(TRIM):
        suspects = [STREAMED] * (component == "text_encoder" and plan.text_encoder == STREAMED)
        suspects += [saving.value for saving in TRIMS.get(component, ()) if saving in plan.savings]
    elif component in WEIGHTS:
        suspects = [READER + component]
        suspects += [plan.precision.value] * is_quantized(component, plan)
        suspects += [Saving.TABLE.value] * (component == "transformer" and plan.table)
    return [name for name in suspects if name not in off]
