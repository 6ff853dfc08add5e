"""What a job says of the pictures that its drawing follows through a ControlNet: the fields, and how they agree.

Knows nothing of ControlNets: which kinds of pictures are followed well, its makers say.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from ..errors import BeyondSchema, InvalidInput
from .field_types import IMAGE_SCHEMA, BrokenRule, ImageText, Share
from .steps import steps_within
from .values import DECIMAL, JsonSchema, ReadFirst, ReadNumber, text_like

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_CONTROLS = 2
KINDS = ("canny", "soft_edge", "depth", "pose")  # that InstantX's union was trained on
Value = TypeVar("Value")


def as_list(value: "JsonValue") -> "JsonValue":
    """A list of one value; a list as it is, since one value may stand for all control pictures."""
    return value if isinstance(value, list) else [value]


def several(rule: str, *single: JsonSchema) -> tuple[object, ...]:
    """The annotations of a field that takes one value, or a list of one for each control picture."""
    limits = Field(min_length=1, max_length=MAX_CONTROLS, strict=False, description=rule)
    return limits, ReadFirst(as_list, single)


KIND_SCHEMA: JsonSchema = {"enum": [*KINDS]}
SCALE_SCHEMA: JsonSchema = {"type": "number", "minimum": 0, "maximum": 2}
PREPROCESS_SCHEMA: JsonSchema = {"enum": ["none", "canny"]}
Scale = Annotated[float, Field(ge=0, le=2), ReadNumber]


class Control(NamedTuple):
    """One of a job's control pictures, and how it is used."""

    label: str  # in sentences
    kind: str | None
    scale: float
    preprocess: str


class ControlFields(BaseModel, frozen=True):
    """The fields of `generate` that a ControlNet serves."""

    control_image: (
        Annotated[
            tuple[ImageText, ...],
            *several("an image, or a list of 1 or 2 images", IMAGE_SCHEMA),
        ]
        | None
    ) = None
    control_type: (
        Annotated[
            tuple[Literal["canny", "soft_edge", "depth", "pose"], ...],
            *several("'canny', 'soft_edge', 'depth' or 'pose', or a list of one for each control picture", KIND_SCHEMA),
        ]
        | None
    ) = None
    control_preprocess: Annotated[
        tuple[Literal["none", "canny"], ...],
        *several("'none' or 'canny', or a list of one for each control picture", PREPROCESS_SCHEMA),
    ] = ("none",)
    control_scale: Annotated[
        tuple[Scale, ...],
        *several(
            "a number from 0 to 2, or a list of one for each control picture", SCALE_SCHEMA, text_like(DECIMAL.pattern)
        ),
    ] = (1.0,)
    control_start: Share = 0.0
    control_end: Share = 1.0

    @model_validator(mode="after")
    def require_control_to_agree(self) -> Self:
        names = [name for name in ControlFields.model_fields if name in self.model_fields_set]
        if not self.control_image:
            if names:
                sentence = f"{names[0]} says how control_image is followed, and control_image is not given"
                raise BrokenRule(sentence, BeyondSchema.TOGETHER)
            return self
        count = len(self.control_image)
        for name in ("control_type", "control_preprocess", "control_scale"):
            if (given := len(getattr(self, name) or (None,))) not in (1, count):
                sentence = f"{name} must be one value or one for each control picture, {count}, not {given}"
                raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        if self.control_start >= self.control_end:
            sentence = f"control_start must be below control_end, {self.control_end:g}, not {self.control_start:g}"
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        for control in self.controls:
            if control.preprocess == "canny" and control.kind not in (None, "canny"):
                sentence = f"control_preprocess 'canny' makes a picture of control_type 'canny', not {control.kind!r}"
                raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    def controlled_steps(self, steps: int) -> range:
        """Those of so many drawn steps, counted from 0, that follow the control pictures."""
        return steps_within(self.control_start, self.control_end, steps)

    @property
    def controls(self) -> tuple[Control, ...]:
        """How each control picture is used, in their order."""
        count = len(self.control_image or ())
        kinds, steps = spread(self.control_type or (None,), count), spread(self.control_preprocess, count)
        scales = spread(self.control_scale, count)
        labels = ["control_image"] if count == 1 else [f"control_image[{number}]" for number in range(count)]
        return tuple(
            Control(label, kind or ("canny" if step == "canny" else None), scale, step)
            for label, kind, scale, step in zip(labels, kinds, scales, steps, strict=True)
        )


def spread(values: tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """One value for each of `count`: a single one serves all of them."""
    return values * count if len(values) == 1 else values


def require_controlnet(
    fields: "Mapping[str, JsonValue]", task: str, is_served: bool, sent_as: Mapping[str, str]
) -> None:
    """Refuse control fields where nothing would follow them. `is_served`: whether the endpoint has a ControlNet.

    Raises `InvalidInput`.
    """
    names = [sent_as.get(name, name) for name in ControlFields.model_fields if name in fields]
    if names and task != "generate":
        raise InvalidInput(f"{names[0]} is not taken by {task}; task generate takes it", BeyondSchema.TOGETHER)
    if names and not is_served:
        raise InvalidInput(
            f"{names[0]} is not here: this worker has no ControlNet (QWEN_CONTROLNET); send the picture as image, and "
            "say in the prompt what is kept of it",
            BeyondSchema.ENDPOINT,
        )
