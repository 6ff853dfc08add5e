"""The sizes that a job asks for by a name or a text, as width and height in pixels. Pure.

Knows nothing of how a picture is drawn.
"""

import re
from typing import TYPE_CHECKING

from ..errors import InvalidInput
from .request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from .values import Warn, read_whole, short_json

if TYPE_CHECKING:
    from typing import TypeGuard

    from pydantic import JsonValue

PIXELS = re.compile(r"([0-9]{1,5})[x*]([0-9]{1,5})")
# The names of fal's `image_size`.
NAMED_SIZES = {
    "square": (512, 512),
    "square_hd": (1024, 1024),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


def read_size(value: "JsonValue", warn: Warn, name: str = "size") -> "dict[str, JsonValue]":
    """Width and height of a text such as 1024x768; nothing where it is auto. Raises `InvalidInput`."""
    if value == "auto":
        return {}
    match = PIXELS.fullmatch(value) if isinstance(value, str) else None
    if not match:
        rule = "WIDTHxHEIGHT in pixels or 'auto'"
        if name == "image_size":
            rule = f"one of {', '.join(NAMED_SIZES)}, an object of width and height, {rule}"
        raise InvalidInput(f"{name} must be {rule}, not {short_json(value)}")
    return on_grid(name, int(match[1]), int(match[2]), warn)


def read_image_size(value: "JsonValue", warn: Warn) -> "dict[str, JsonValue]":
    """Width and height of fal's `image_size`: a name or an object. Raises `InvalidInput`."""
    if isinstance(value, str) and value in NAMED_SIZES:
        width, height = NAMED_SIZES[value]
        return {"width": width, "height": height}
    if not isinstance(value, dict):
        return read_size(value, warn, "image_size")
    width, height = read_whole(value.get("width")), read_whole(value.get("height"))
    if set(value) != {"width", "height"} or not is_whole(width) or not is_whole(height):
        raise InvalidInput("image_size must be an object of width and height alone, both whole numbers of pixels")
    return on_grid("image_size", width, height, warn)


def is_whole(value: "JsonValue") -> "TypeGuard[int]":
    return isinstance(value, int) and not isinstance(value, bool)


def on_grid(name: str, width: int, height: int, warn: Warn) -> "dict[str, JsonValue]":
    """The size, or the nearest one whose sides are multiples; clients have such sizes in lists of their own.

    A side outside the limits stays as it is, for `request.py` to refuse.
    """
    near = [(side + SIDE_MULTIPLE // 2) // SIDE_MULTIPLE * SIDE_MULTIPLE for side in (width, height)]
    if near == [width, height] or not all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        return {"width": width, "height": height}
    rule = f"width and height are multiples of {SIDE_MULTIPLE}"
    warn(f"{name} {width}x{height} is brought to {near[0]}x{near[1]}: {rule}")
    return {"width": near[0], "height": near[1]}


def nearest_sides(side: int) -> str:
    """The words that name the sides next to one that is off the grid; nothing for one outside the limits."""
    lower = side // SIDE_MULTIPLE * SIDE_MULTIPLE
    if not MIN_SIDE <= side <= MAX_SIDE or side == lower:
        return ""
    return f"; the nearest are {lower} and {lower + SIDE_MULTIPLE}"
