"""The texts and objects in which clients give a size, as our fields, and whether several of these agree. Pure.

Knows nothing of the pixels that a name stands for (`named_sizes.py`), which depend on the checkpoint.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BeyondSchema, InvalidInput
from .field_types import MAX_RATIO, MAX_SIDE, MIN_SIDE
from .named_sizes import MATCH_INPUT, MAX_STRETCH, TABLES, pixels_of, ratio_of, times_apart
from .request import Drawing, Edit
from .values import WHOLE, JsonSchema, Reader, Warn, read_whole, short_json, text_like

if TYPE_CHECKING:
    from typing import TypeGuard

    from pydantic import JsonValue

SIDES = re.compile(r"([0-9]{1,5}) ?[xX*×] ?([0-9]{1,5})")
RATIO = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?) ?: ?([0-9]{1,4}(?:\.[0-9]{1,4})?)")
LARGEST_OF_RATIO = 100  # two sides up to this one are meant as a ratio: 16x9
# The names of fal's `image_size`.
NAMED_SIZES = {
    "square": "512x512",
    "square_hd": "1024x1024",
    "portrait_4_3": "768x1024",
    "portrait_16_9": "576x1024",
    "landscape_4_3": "1024x768",
    "landscape_16_9": "1024x576",
    # The other way round, as some hosts of the same models write them.
    "portrait_3_4": "768x1024",
    "portrait_9_16": "576x1024",
    "landscape_3_4": "1024x768",
    "landscape_9_16": "1024x576",
}
# What leaves the size to the endpoint, or to width and height.
NO_SIZE = ("auto", "default", "custom", "optimize_for_quality")
IDLE_TEXTS = (*NO_SIZE, "optimize_for_speed", "")
MATCH_TEXTS = (MATCH_INPUT, "match_input")
# What `str.strip` takes off; JSON Schema's own `\s` is other characters.
SPACES = r"[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
NO_SIZE_TEXT = text_like(rf"{SPACES}(?:{'|'.join(IDLE_TEXTS)}){SPACES}")
SIZE_TEXT = text_like(
    rf"{SPACES}(?:{SIDES.pattern}|{RATIO.pattern}|[12][kK]|{'|'.join((*NAMED_SIZES, *MATCH_TEXTS))}){SPACES}"
)
# A side is brought to the grid, so that it may be any whole number within the limits here.
SIDE: JsonSchema = {"anyOf": [{"type": "integer", "minimum": MIN_SIDE, "maximum": MAX_SIDE}, text_like(WHOLE.pattern)]}
SIZE_OBJECT: JsonSchema = {
    "type": "object",
    "properties": {"width": SIDE, "height": SIDE},
    "required": ["width", "height"],
    "additionalProperties": False,
}
WITH_OBJECTS = ("image_size", "target_size")
TEXTS = "WIDTHxHEIGHT in pixels, WIDTH:HEIGHT as an aspect ratio, '1K', '2K' or 'auto'"


def size_reader(name: str) -> Reader:
    """A reader of a field that gives a size in a text, and `image_size` and `target_size` in an object too."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if isinstance(value, dict) and name in WITH_OBJECTS:
            return read_object(name, value)
        text = value.strip() if isinstance(value, str) else None
        if text == "":
            warn(f"{name} is empty, and the default size is used")
        if text == "optimize_for_speed":
            warn(f"{name} {short_json(value)} has no effect: a smaller size is drawn faster, and preset fast too")
        if text in IDLE_TEXTS:
            return {}
        if text in MATCH_TEXTS:
            return {"aspect_ratio": MATCH_INPUT}
        if text and text.upper() in TABLES:
            return {"size": text.upper()}
        text = NAMED_SIZES.get(text or "", text)
        if text and (match := SIDES.fullmatch(text)):
            return {"size": in_limits(name, int(match[1]), int(match[2]))}
        if text and (match := RATIO.fullmatch(text)):
            return {"aspect_ratio": require_ratio(name, match[1], match[2])}
        rule = TEXTS
        if name == "image_size":
            rule = f"one of {', '.join(NAMED_SIZES)}, an object of width and height, {rule}"
        raise InvalidInput(f"{name} must be {rule}, not {short_json(value)}")

    schemas = [SIZE_TEXT, SIZE_OBJECT] if name in WITH_OBJECTS else [SIZE_TEXT]
    return Reader(read, ("size", "aspect_ratio"), {"anyOf": schemas}, idle=NO_SIZE_TEXT)


def read_object(name: str, value: "Mapping[str, JsonValue]") -> "dict[str, JsonValue]":
    width, height = read_whole(value.get("width")), read_whole(value.get("height"))
    if set(value) != {"width", "height"} or not is_whole(width) or not is_whole(height):
        raise InvalidInput(f"{name} must be an object of width and height alone, both whole numbers of pixels")
    return {"size": in_limits(name, width, height)}


def is_whole(value: "JsonValue") -> "TypeGuard[int]":
    return isinstance(value, int) and not isinstance(value, bool)


def in_limits(name: str, width: int, height: int) -> str:
    """The sides as a text of ours. Raises `InvalidInput`."""
    for own, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            rule = f"a whole number from {MIN_SIDE} to {MAX_SIDE}"
            ratio = f"; an aspect ratio is written {width}:{height}" if max(width, height) <= LARGEST_OF_RATIO else ""
            sentence = f"{own} (sent as {name}) must be {rule}, not {short_json(side)}{ratio}"
            raise InvalidInput(sentence, BeyondSchema.TEXT_NUMBER)
    return f"{width}x{height}"


def require_ratio(name: str, width: str, height: str) -> str:
    """The aspect ratio as a text of ours. Raises `InvalidInput`."""
    text = f"{width}:{height}"
    if not float(width) or not float(height) or times_apart(ratio_of(text) or 0.0, 1.0) > MAX_RATIO:
        sentence = f"{name} must be from 1:{MAX_RATIO} to {MAX_RATIO}:1, not {short_json(text)}"
        raise InvalidInput(sentence, BeyondSchema.TEXT_NUMBER)
    return text


def join_sizes(request: Drawing, sent_as: Mapping[str, str]) -> Drawing:
    """The request with one size, whose names agree: by width and height where both are given.

    `sent_as`: by field, the name that it was sent as, where that is another. Raises `InvalidInput` for a size that is
    given twice, and once otherwise than the other time.
    """
    sides = {name: getattr(request, name) for name in ("width", "height") if name in request.model_fields_set}
    size, ratio = (f"{sent_as.get(name, name)} ({getattr(request, name)})" for name in ("size", "aspect_ratio"))
    pixels = pixels_of(request.size)
    for name, named in zip(("width", "height"), pixels or (), strict=False):
        if sides.get(name, named) != named:
            raise InvalidInput(
                f"{name} is given twice, as {sent_as.get('size', 'size')} ({named}) and as {name} ({sides[name]}), "
                "and the two differ: send one of them",
                BeyondSchema.TWICE,
            )
    given = " and ".join(f"{name} ({side})" for name, side in sides.items())
    if request.size in TABLES and sides and not is_about(sides, TABLES[request.size][0]):
        raise InvalidInput(f"{size} and {given} differ: send one of them", BeyondSchema.TWICE)
    if request.aspect_ratio == MATCH_INPUT:
        if not isinstance(request, Edit):
            sentence = f"{ratio} needs an input picture, and {request.task} takes none: send another ratio"
            raise InvalidInput(sentence, BeyondSchema.TOGETHER)
        if pixels or sides:
            sentence = f"{ratio} and {size if pixels else given} may differ: send one of them"
            raise InvalidInput(sentence, BeyondSchema.TWICE)
    asked = ratio_of(request.aspect_ratio)
    if asked and len(sides) == 1 and not pixels:
        sentence = f"{ratio} and {given} leave the size open: send width and height, or the ratio alone"
        raise InvalidInput(sentence, BeyondSchema.TOGETHER)
    width, height = pixels or (sides.get("width"), sides.get("height"))
    if asked and width and height and times_apart(asked, width / height) > MAX_STRETCH:
        raise InvalidInput(f"{ratio} and {size if pixels else given} differ: send one of them", BeyondSchema.TWICE)
    return request.model_copy(update={"size": None, "aspect_ratio": None}) if len(sides) == 2 else request


def is_about(sides: Mapping[str, int], square: tuple[int, int]) -> bool:
    """Whether width and height make about as many pixels as the square."""
    return len(sides) > 1 and times_apart(sides["width"] * sides["height"], square[0] * square[1]) <= MAX_STRETCH
