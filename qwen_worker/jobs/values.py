"""Values as clients send them, JavaScript's 20.0 and the "42" of forms and workflow tools, and in sentences. Pure.

What is not exactly a number stays as it is, and the models of `request.py` refuse it. Knows nothing of fields.
"""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BeforeValidator

from ..errors import hide_secrets

if TYPE_CHECKING:
    from pydantic import JsonValue

Warn = Callable[[str], None]  # takes a sentence for the warnings of a reply

MAX_EXACT = 2**53 - 1  # the largest whole number up to which every JSON client holds all exactly
WHOLE = re.compile(r"(-?[0-9]{1,20})(?:\.0{1,20})?")
DECIMAL = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")


def ignore(sentence: str) -> None:
    """A `Warn` for callers who show no warnings."""


def read_whole(value: "JsonValue") -> "JsonValue":
    """The whole number that a float or a decimal text is; any other value as it is.

    A float above `MAX_EXACT` stays a float, since the number that its sender meant cannot be told from it.
    """
    if isinstance(value, str) and (match := WHOLE.fullmatch(value)):
        return int(match[1])
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        return int(value)
    return value


def read_number(value: "JsonValue") -> "JsonValue":
    """The number that a decimal text is; any other value as it is."""
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


def read_guidance(value: "JsonValue") -> "JsonValue":
    """A guidance scale, in which other APIs write 0 for no guidance, and the pipelines 1."""
    number = read_number(value)
    return 1.0 if number == 0 and not isinstance(number, bool) else number


def agree(one: "JsonValue", other: "JsonValue") -> bool:
    """Whether two values of one field mean the same: "4", 4 and 4.0 do; true and 1 do not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    values = [read_whole(value) for value in (one, other)]
    # Whole numbers stay whole: as floats, two seeds that differ by one may be equal.
    one, other = (value if isinstance(value, int) else read_number(value) for value in values)
    try:
        return one == other
    except RecursionError:  # objects within objects, so deep that no field of ours could be one
        return False


ReadWhole, ReadNumber, ReadGuidance = map(BeforeValidator, (read_whole, read_number, read_guidance))


def short_json(value: "JsonValue | tuple[JsonValue, ...]") -> str:
    """A value as its JSON, short enough for a sentence; a URL without its secrets."""
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    try:
        text = json.dumps(hide_secrets(value) if isinstance(value, str) else value, ensure_ascii=True)
    except (TypeError, ValueError):  # no JSON, or a number of more digits than Python writes
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
