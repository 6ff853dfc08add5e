"""Outpainting as a job asks for it: pixels on each side, or an aspect ratio that the canvas grows to. Pure.

Knows nothing of what the new part is filled with (`pictures/expansion.py`).
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..errors import BeyondSchema, InvalidInput
from .field_types import MAX_RATIO, whole_number
from .values import NULL, WHOLE, JsonSchema, ReadWhole, agree, read_whole, text_like

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_MARGIN = 4096  # pixels on one side
MAX_CANVAS_PIXELS = 50_000_000  # of the grown canvas, as of a picture that is sent
SIDES = ("left", "right", "top", "bottom")
RULE = f"a whole number of pixels from 0 to {MAX_MARGIN}, or an object of left, right, top and bottom with such numbers"
MARGIN: JsonSchema = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_MARGIN}, text_like(WHOLE.pattern)]}
SIDE_FIELDS = {f"expand_{side}": side for side in SIDES}  # other APIs' fields, one for each side


class Margins(BaseModel, frozen=True):
    """By how many pixels a canvas grows on each side."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    left: Annotated[int, whole_number(0, MAX_MARGIN), ReadWhole] = 0
    right: Annotated[int, whole_number(0, MAX_MARGIN), ReadWhole] = 0
    top: Annotated[int, whole_number(0, MAX_MARGIN), ReadWhole] = 0
    bottom: Annotated[int, whole_number(0, MAX_MARGIN), ReadWhole] = 0

    def grown(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the grown canvas of a picture of this size."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom


def read_margins(value: "JsonValue") -> "JsonValue":
    """One number as that of all four sides; None where no side grows."""
    number = read_whole(value)
    if isinstance(number, int) and not isinstance(number, bool):
        return dict.fromkeys(SIDES, number) if number else None
    if not isinstance(value, dict):
        return value
    given: dict[str, JsonValue] = {side: pixels for side, pixels in value.items() if pixels is not None}
    return given if any(not agree(pixels, 0) for pixels in given.values()) else None


BY_SIDE: JsonSchema = {
    "type": "object",
    "properties": {side: {"anyOf": [MARGIN, NULL]} for side in SIDES},
    "additionalProperties": NULL,
}
ExpandBy = Annotated[
    Margins | None,
    Field(description=RULE),
    BeforeValidator(read_margins),
    WithJsonSchema({"anyOf": [MARGIN, BY_SIDE]}),
]


def gather_sides(sent: "dict[str, JsonValue]") -> None:
    """Bring fields of one side each into `expand`. Raises `InvalidInput` where that is given too."""
    names = [name for name in SIDE_FIELDS if name in sent]
    if not names:
        return
    if "expand" in sent or "outpaint" in sent:
        sentence = f"expand is given twice, as {names[0]} and as a whole: send expand alone"
        raise InvalidInput(sentence, BeyondSchema.TWICE)
    sent["expand"] = {SIDE_FIELDS[name]: sent.pop(name) for name in names}


def margins_to_ratio(size: tuple[int, int], ratio: float) -> Margins:
    """The margins with which a picture of this size, in the middle of its canvas, has the ratio of width to height.

    Raises `InvalidInput` where it has it already, or where a side would grow too far.
    """
    width, height = size
    across, down = max(0, round(height * ratio) - width), max(0, round(width / ratio) - height)
    if across and down:  # the ratio is the picture's own up to rounding
        across = down = 0
    left, top = across // 2, down // 2
    margins = Margins.model_construct(left=left, right=across - left, top=top, bottom=down - top)
    if most := max(getattr(margins, side) for side in SIDES):
        if most > MAX_MARGIN:
            raise InvalidInput(
                f"fit 'expand' would grow the picture, {width}x{height}, by {most} pixels on a side, and {MAX_MARGIN} "
                "are the most: send a smaller picture or another aspect_ratio"
            )
        return margins
    raise InvalidInput(
        f"fit 'expand' has nothing to do: the picture, {width}x{height}, has the aspect_ratio already; "
        "send another one, or expand"
    )


def require_canvas(size: tuple[int, int], margins: Margins) -> None:
    """Refuse a grown canvas that is too large or too long, by the picture's size. Raises `InvalidInput`."""
    width, height = margins.grown(size)
    words = f"expand makes the picture, {size[0]}x{size[1]}, a canvas of {width}x{height}"
    if width * height > MAX_CANVAS_PIXELS:
        raise InvalidInput(f"{words}, and it may have at most {MAX_CANVAS_PIXELS // 1_000_000} megapixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidInput(f"{words}, and its longer side may be at most {MAX_RATIO} times its shorter one")
