"""How many steps of its schedule a job draws, and in which of them guidance makes its second pass. Pure.

Knows nothing of presets, which fill in the steps, nor of how a step is drawn.
"""

import math
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from ..errors import BeyondSchema
from .field_types import BrokenRule, Share, whole_number
from .values import ReadGuidance, ReadWhole


class StepFields(BaseModel, frozen=True):
    """The fields of a job that are about its steps: how many, and with what guidance.

    `guidance_start`, `guidance_end`: the part of the drawn steps that have any, from 0, their begin, to 1, their end.
    """

    num_inference_steps: Annotated[int, whole_number(1, 100), ReadWhole] = 50
    guidance_scale: Annotated[float, Field(ge=1, le=20, description="0 or a number from 1 to 20"), ReadGuidance] = 4.0
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

    def guided_steps(self, steps: int) -> range:
        """Those of so many drawn steps, counted from 0, that take guidance's second pass."""
        return steps_within(self.guidance_start, self.guidance_end, steps) if self.guidance_scale > 1 else range(0)

    def whole_steps(self, steps: int, done: int | None = None) -> float:
        """As how many steps the first `done` of so many drawn ones count in time, all of them where `done` is None.

        Where other steps take guidance's second pass, one that does not is half a step.
        """
        done = steps if done is None else done
        if self.guidance_scale == 1 or not self.limits_guidance:
            return done
        guided = self.guided_steps(steps)
        return (done + len(range(guided.start, min(done, guided.stop)))) / 2


def steps_within(first: float, last: float, steps: int) -> range:
    """Which of so many steps, counted from 0, lie as a whole in a part of them: from 0, their begin, to 1, their end.

    This is how diffusers chooses the steps of a ControlNet.
    """
    inside = [step for step in range(steps) if step / steps >= first and (step + 1) / steps <= last]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def drawn_steps(schedule: int, strength: float) -> int:
    """How many steps, the last ones, are drawn of a schedule of so many."""
    return max(1, math.ceil(schedule * strength - 1e-9))
