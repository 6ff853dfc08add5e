"""Values as clients send them, JavaScript's 20.0 and the "42" of forms and workflow tools, and in sentences. Pure.

What is not exactly a number stays as it is, and the models of `request.py` refuse it. What reads a value stands beside
the JSON schema of what it reads. Knows nothing of fields.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from ..errors import hide_secrets

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue

JsonSchema = dict[str, Any]
NULL: JsonSchema = {"type": "null"}  # a field with the value null counts as absent
Warn = Callable[[str], None]  # takes a sentence for the warnings of a reply

MAX_EXACT = 2**53 - 1  # the largest whole number up to which every JSON client holds all exactly
WHOLE = re.compile(r"(-?[0-9]{1,20})(?:\.0{1,20})?")
DECIMAL = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")


@dataclass(frozen=True, eq=False)
class ReadFirst:
    """Beside a field's type: what reads its value first, and the schemas of the forms that only reading makes one."""

    read: "Callable[[Any], JsonValue]"
    forms: tuple[JsonSchema, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: "GetJsonSchemaHandler"
    ) -> JsonSchema:
        return {"anyOf": [handler(schema), *self.forms]}


@dataclass(frozen=True, eq=False)
class Reader:
    """What reads a field of another API, and the JSON schema of its values.

    `read`: our fields by their names; raises `InvalidInput`. `schema`: of the values that give the fields `gives`,
    beside those that a field of ours takes by itself where the reader has its name. `idle`: of values that ask for
    nothing.
    """

    read: "Callable[[JsonValue, Warn], dict[str, JsonValue]]"
    gives: tuple[str, ...] = ()
    schema: JsonSchema | None = None
    idle: JsonSchema | None = None


def text_like(pattern: str) -> JsonSchema:
    """The schema of texts that match the whole pattern."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


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


ReadWhole = ReadFirst(read_whole, (text_like(WHOLE.pattern),))
ReadNumber = ReadFirst(read_number, (text_like(DECIMAL.pattern),))
ReadGuidance = ReadFirst(read_guidance, ({"const": 0}, text_like(DECIMAL.pattern)))


def short_json(value: "JsonValue | tuple[JsonValue, ...]") -> str:
    """A value as its JSON, short enough for a sentence; a URL without its secrets."""
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    try:
        text = json.dumps(hide_secrets(value) if isinstance(value, str) else value, ensure_ascii=True)
    except (TypeError, ValueError):  # no JSON, or a number of more digits than Python writes
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
