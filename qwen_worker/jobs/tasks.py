"""Every task by its name; the tasks that draw nothing, and the one that takes a picture apart.

Generating and editing are in `request.py`, with what all tasks that draw have in common. Knows nothing of how a job is
read (`parsing.py`).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..errors import BeyondSchema
from .field_types import BrokenRule, ImageText, whole_number
from .picture_fields import WithoutPart
from .request import BackgroundReplacement, Drawing, Edit, Generate, Request
from .values import ReadWhole

MAX_LAYERS = 10


class Health(Request, frozen=True):
    """How the worker is."""

    task = "health"


class Debug(Request, frozen=True):
    """The versions of packages and the settings."""

    task = "debug"


class Schema(Request, frozen=True):
    """The JSON schema of a job's input."""

    task = "schema"


class Layers(WithoutPart, Drawing, frozen=True):
    """A picture taken apart into layers that give it again, laid over each other from the first to the last.

    All layers are drawn at once from one seed, in the picture's aspect. Without a prompt the model describes the
    picture itself.
    """

    task = "layers"
    needs_prompt = False
    hidden = frozenset({"strength"})
    images: Annotated[  # pyright: ignore[reportGeneralTypeIssues]  without a default here: it is required
        tuple[ImageText, ...], Field(min_length=1, max_length=1, strict=False, description="a list of one image")
    ]
    num_layers: Annotated[int, whole_number(2, MAX_LAYERS), ReadWhole] = 4
    resolution: Annotated[Literal[640, 1024], Field(description="640 or 1024"), ReadWhole] = 640
    num_images: Annotated[Literal[1], Field(description="1: num_layers is the number of layers"), ReadWhole] = 1
    width: None = None
    height: None = None
    size: None = None
    aspect_ratio: None = None
    background: None = None  # pyright: ignore[reportIncompatibleVariableOverride]  as prompt_extend, it is no field here
    prompt_extend: None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def require_transparency(self) -> Self:
        if self.output_format == "jpeg":
            sentence = "output_format jpeg has no transparency, which layers need: send png, webp or auto"
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def uses_pictures(self) -> bool:
        return True

    @property
    def picture_count(self) -> int:
        return self.num_layers


TASKS: dict[str, type[Request]] = {
    model.task: model for model in (Generate, Edit, BackgroundReplacement, Layers, Health, Debug, Schema)
}
