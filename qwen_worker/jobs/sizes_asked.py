"""The texts and objects in which clients give a size, as our fields, and whether several of these agree. Pure.

Knows nothing of the pixels that a name stands for (`named_sizes.py`), which depend on the checkpoint.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import InvalidInput
from .named_sizes import MATCH_INPUT, MAX_STRETCH, TABLES, pixels_of, ratio_of, times_apart
from .request import MAX_RATIO, MAX_SIDE, MIN_SIDE, Drawing, Edit
from .values import Warn, read_whole, short_json

if TYPE_CHECKING:
    from typing import TypeGuard

    from pydantic import JsonValue

SIDES = re.compile(r"([0-9]{1,5}) ?[xX*×] ?([0-9]{1,5})")
RATIO = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?) ?: ?([0-9]{1,4}(?:\.[0-9]{1,4})?)")
# The names of fal's `image_size`.
NAMED_SIZES = {
    "square": "512x512",
    "square_hd": "1024x1024",
    "portrait_4_3": "768x1024",
    "portrait_16_9": "576x1024",
    "landscape_4_3": "1024x768",
    "landscape_16_9": "1024x576",
}
# What leaves the size to the endpoint, or to width and height.
NO_SIZE = ("auto", "default", "custom", "optimize_for_quality")
TEXTS = "WIDTHxHEIGHT in pixels, WIDTH:HEIGHT as an aspect ratio, '1K', '2K' or 'auto'"


def size_reader(name: str) -> "Callable[[JsonValue, Warn], dict[str, JsonValue]]":
    """A reader of a field that gives a size in a text, and `image_size` and `target_size` in an object too."""

    def read(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
        if isinstance(value, dict) and name in ("image_size", "target_size"):
            return read_object(name, value)
        text = value.strip() if isinstance(value, str) else None
        if text == "":
            warn(f"{name} is empty, and the default size is used")
        if text == "optimize_for_speed":
            warn(f"{name} {short_json(value)} has no effect: a smaller size is drawn faster, and preset fast too")
        if text in (*NO_SIZE, "", "optimize_for_speed"):
            return {}
        if text in (MATCH_INPUT, "match_input"):
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

    return read


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
            raise InvalidInput(f"{own} (sent as {name}) must be {rule}, not {short_json(side)}")
    return f"{width}x{height}"


def require_ratio(name: str, width: str, height: str) -> str:
    """The aspect ratio as a text of ours. Raises `InvalidInput`."""
    text = f"{width}:{height}"
    if not float(width) or not float(height) or times_apart(ratio_of(text) or 0.0, 1.0) > MAX_RATIO:
        raise InvalidInput(f"{name} must be from 1:{MAX_RATIO} to {MAX_RATIO}:1, not {short_json(text)}")
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
                "and the two differ: send one of them"
            )
    given = " and ".join(f"{name} ({side})" for name, side in sides.items())
    if request.size in TABLES and sides and not is_about(sides, TABLES[request.size][0]):
        raise InvalidInput(f"{size} and {given} differ: send one of them")
    if request.aspect_ratio == MATCH_INPUT:
        if not isinstance(request, Edit):
            raise InvalidInput(f"{ratio} needs an input picture, and {request.task} takes none: send another ratio")
        if pixels or sides:
            raise InvalidInput(f"{ratio} and {size if pixels else given} may differ: send one of them")
    asked = ratio_of(request.aspect_ratio)
    if asked and len(sides) == 1 and not pixels:
        raise InvalidInput(f"{ratio} and {given} leave the size open: send width and height, or the ratio alone")
    width, height = pixels or (sides.get("width"), sides.get("height"))
    if asked and width and height and times_apart(asked, width / height) > MAX_STRETCH:
        raise InvalidInput(f"{ratio} and {size if pixels else given} differ: send one of them")
    return request.model_copy(update={"size": None, "aspect_ratio": None}) if len(sides) == 2 else request


def is_about(sides: Mapping[str, int], square: tuple[int, int]) -> bool:
    """Whether width and height make about as many pixels as the square."""
    return len(sides) > 1 and times_apart(sides["width"] * sides["height"], square[0] * square[1]) <= MAX_STRETCH
