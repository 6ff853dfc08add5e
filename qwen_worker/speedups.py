"""Which speed-ups a loaded pipeline has, why it lacks the others, and what of them is on while a job is drawn.

Each is a module of its own, here is only the choice. By itself (`QWEN_SPEEDUPS=auto`) a card has those whose worth is
known from published measurements, a CPU has none: there pictures stay bit-equal to stock's. What is asked for by name
is used wherever it can be. Imports what touches tensors inside functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .footprint import Plan
from .settings import Settings, Speedup

AUTO = frozenset({Speedup.ROTARY})
ON = "on"


@dataclass(frozen=True)
class Speed:
    """The speed-ups of one pipeline. `states`: of each `on`, or why it is off."""

    states: Mapping[Speedup, str] = field(default_factory=dict)

    def has(self, one: Speedup) -> bool:
        return self.states.get(one) == ON

    def __str__(self) -> str:
        return ", ".join(one.value for one in self.states if self.has(one)) or "none"


def decide(plan: Plan, asked: frozenset[Speedup] | None, capability: tuple[int, int] | None) -> dict[Speedup, str]:
    """Of each speed-up `on`, or why it is off. `capability`: the card's, None on a CPU."""
    known = all(model.parts for model in plan.models)
    states = {}
    for one in Speedup:
        if not known:
            states[one] = "made for the 20B architecture"
        elif asked is not None and one not in asked:
            states[one] = "not in QWEN_SPEEDUPS"
        elif asked is None and plan.device == "cpu":
            states[one] = "a CPU has none by itself: its pictures stay bit-equal to stock's"
        elif asked is None and one not in AUTO:
            states[one] = NOT_BY_ITSELF[one]
        else:
            states[one] = impossible(one, plan, capability) or ON
    return states


# What `auto` leaves out, and why.
NOT_BY_ITSELF: dict[Speedup, str] = {}


def impossible(one: Speedup, plan: Plan, capability: tuple[int, int] | None) -> str:
    """Why this plan cannot have it; empty where it can."""
    return ""


def apply(pipe: Any, plan: Plan, settings: Settings, capability: tuple[int, int] | None, table: Any) -> Speed:
    """Give a pipeline that is loaded what it can have. `table`: its modulation's, or None."""
    states = decide(plan, settings.QWEN_SPEEDUPS, capability)
    if states[Speedup.ROTARY] == ON:
        from . import attention, rotary

        attention.put(pipe.transformer)
        pipe.transformer.pos_embed = rotary.RealRotary(pipe.transformer.pos_embed)
    return Speed(states)
