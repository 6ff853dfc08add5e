"""What a picture has whose job does not say: the steps, guidance, size and negative prompt of the checkpoint. Pure.

A job is parsed before its checkpoint is located. What is filled in counts as unset still, so that it is filled in anew
once the checkpoint is known. Knows nothing of which checkpoint recommends what.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from .request import Drawing, Generate

Request = TypeVar("Request", bound=Drawing)

MOST_FEW_STEPS = 10  # without guidance, so few steps are those of a distilled model or a few-step LoRA


class DefaultsReport(TypedDict):
    """The defaults of one model, as `health` shows them."""

    num_inference_steps: int
    guidance_scale: float
    size: str  # of a picture from a prompt, WIDTHxHEIGHT in pixels
    negative_prompt: str | None
    source: str  # who recommends them


@dataclass(frozen=True)
class Defaults:
    """Of one checkpoint. `source`: who recommends them.

    `schedule`: the sigmas that the checkpoint brings, before the scheduler's shift and without the last 0; empty where
    the scheduler makes them for any number of steps.
    """

    steps: int
    guidance: float
    source: str
    size: tuple[int, int] = (1024, 1024)  # pixels
    negative_prompt: str | None = None
    schedule: tuple[float, ...] = ()

    @property
    def is_distilled(self) -> bool:
        """Whether the checkpoint is made for few steps without guidance, as a few-step LoRA makes another one."""
        return self.steps <= MOST_FEW_STEPS and self.guidance == 1

    @property
    def balanced_steps(self) -> int:
        """The steps of preset balanced: three of five."""
        return self.steps if self.is_distilled else round(self.steps * 0.6)

    def of(self, request: Drawing, steps: int, guidance: float) -> dict[str, Any]:
        """The values of the fields that the request leaves open, drawn in these steps with this guidance."""
        values: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        own = {name: getattr(request, name) for name in request.model_fields_set}
        if self.negative_prompt and own.get("guidance_scale", guidance) > 1:
            values["negative_prompt"] = self.negative_prompt
        names_size = own.get("size") or own.get("aspect_ratio")
        if isinstance(request, Generate) and not names_size and not {"width", "height"} & set(own):
            values |= {"width": self.size[0], "height": self.size[1]}
        return values

    def report(self) -> DefaultsReport:
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "size": "{}x{}".format(*self.size),
            "negative_prompt": self.negative_prompt,
            "source": self.source,
        }


def with_defaults(request: Request, values: Mapping[str, Any]) -> Request:
    """The request with these values in the fields that it does not set. They count as not set still.

    What an earlier call has filled in is forgotten.
    """
    own = request.model_fields_set
    fields = {name: getattr(request, name) for name in own}
    return type(request).model_construct(set(own), **(dict(values) | fields))


def stretched(schedule: tuple[float, ...], steps: int) -> list[float]:
    """The schedule in another number of steps: sigmas on the polyline through its own and the last 0.

    In as many steps as it has they are its own.
    """
    points = (*schedule, 0.0)
    places = [k * len(schedule) / steps for k in range(steps)]
    return [
        points[int(place)] + (place - int(place)) * (points[int(place) + 1] - points[int(place)]) for place in places
    ]
