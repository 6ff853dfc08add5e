"""How many steps of its schedule a job draws, and in which of them guidance makes its second pass. Pure.

Knows nothing of presets, which fill in the steps, nor of how a step is drawn.
"""

import math
from typing import Self

from pydantic import BaseModel, model_validator

from ..errors import BeyondSchema
from .field_types import BrokenRule, Share


class GuidanceRange(BaseModel, frozen=True):
    """The fields that say in which part of the drawn steps there is guidance, from 0, their begin, to 1, their end."""

    guidance_start: Share = 0.0
    guidance_end: Share = 1.0

    @model_validator(mode="after")
    def require_steps_with_guidance(self) -> Self:
        if self.guidance_start >= self.guidance_end:
            sentence = (
                f"guidance_start must be below guidance_end, {self.guidance_end:g}, not {self.guidance_start:g}; "
                "guidance_scale 1 draws without guidance"
            )
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def limits_guidance(self) -> bool:
        """Whether there are steps that are drawn without guidance, if any are with it."""
        return (self.guidance_start, self.guidance_end) != (0, 1)

    def steps_in_range(self, steps: int) -> range:
        """Those of so many drawn steps, counted from 0, that lie within the range as a whole.

        They are chosen as diffusers chooses the steps of a ControlNet.
        """
        inside = [
            step
            for step in range(steps)
            if step / steps >= self.guidance_start and (step + 1) / steps <= self.guidance_end
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


def drawn_steps(schedule: int, strength: float) -> int:
    """How many steps, the last ones, are drawn of a schedule of so many."""
    return max(1, math.ceil(schedule * strength - 1e-9))
