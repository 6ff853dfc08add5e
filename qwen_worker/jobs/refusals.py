"""What pydantic finds wrong with a job, in our words: the field, the rule, the value, and the field that was meant.

Knows nothing of how a job is read (`parsing.py`).
"""

import difflib
import re
from typing import TYPE_CHECKING

from ..errors import BeyondSchema
from .aliases import ALIASES, Fields
from .containers import LORA_NAMES
from .control import ControlFields
from .field_types import IMAGE_RULE, MAX_PROMPT_CHARACTERS, Lora
from .picture_fields import PART_FIELDS, PictureFields
from .request import IMAGE_FIELDS, Edit, Request
from .served import nearest_sides
from .steps import StepFields
from .values import DECIMAL, MAX_EXACT, short_json

if TYPE_CHECKING:
    from pydantic import JsonValue
    from pydantic_core import ErrorDetails

# What people call the prompt; none of them resembles the word.
PROMPT_NAMES = ("text", "caption", "description", "instruction", "query", "input_text")
# pydantic's errors of lists, texts and numbers outside their limits
LENGTHS = ("too_short", "too_long", "string_too_long")
UNKNOWN = ("extra_forbidden", "invalid_key")
BOUNDS = ("greater_than", "greater_than_equal", "less_than_equal", "multiple_of")
MAX_NAME = 40  # characters of an unknown name that are compared with the fields' names
CLOSE = 0.8  # a name that resembles a field's by less may mean a picture, if it has one of these words
PICTURE_NAME = re.compile(r"image|img|picture|photo|base64|b64|^(?:file|src|source|pic)(?:_|$)", re.IGNORECASE)


def beyond_schema(error: "ErrorDetails", fields: Fields) -> BeyondSchema | None:
    """The rule that one of pydantic's errors breaks, where the schema of a job cannot say it."""
    kind, name = error["type"], str(error["loc"][0]) if error["loc"] else ""
    if kind == "value_error":
        return getattr(error.get("ctx", {})["error"], "beyond_schema", None)
    if kind in ("finite_number", "string_unicode"):
        return BeyondSchema.NOT_JSON
    if kind == "int_type" and isinstance(error["input"], float) and abs(error["input"]) > MAX_EXACT:
        return BeyondSchema.LARGE_FLOAT
    if kind in BOUNDS and any(map(has_number_as_text, fields.origins(name))):
        return BeyondSchema.TEXT_NUMBER
    if kind == "extra_forbidden" and name == "loras" and error["loc"][-1] in LORA_NAMES:
        return BeyondSchema.TWICE
    if kind == "too_short" and name == "images":
        return BeyondSchema.TOGETHER  # an empty list beside no other picture
    # Lists and texts that are made of several fields
    return BeyondSchema.TOGETHER if kind in LENGTHS and name not in fields.sent else None


def has_number_as_text(value: "JsonValue") -> bool:
    """Whether the value is, or holds, a text that is read as a number. It may be deeper than calls can be."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and DECIMAL.fullmatch(one):
            return True
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return False


def describe_error(error: "ErrorDetails", model: type[Request], sent_as: dict[str, str]) -> str:
    """One of pydantic's errors in our words: the field, the rule, the value."""
    if not error["loc"]:
        return str(error.get("ctx", {})["error"])
    name = str(error["loc"][0])
    if name == "loras" and len(error["loc"]) > 1:
        return describe_lora_error(error)
    label = f"{name} (sent as {sent_as[name]})" if name in sent_as else name
    if error["type"] == "missing":
        return f"{label} is required by {model.task}"
    if error["type"] in UNKNOWN and len(error["loc"]) == 1:
        return f"{short_json(name)} is not a field of {model.task}{did_you_mean(name, public_fields(model))}"
    if error["type"] == "value_error":
        return f"{label} {error.get('ctx', {})['error']}"
    if is_hidden(model, name):
        hint = "; task edit takes it" if name in PART_FIELDS else ""
        return f"{name} is not taken by {model.task}{hint}"
    value = short_json(list(error["loc"]).pop() if error["type"] in UNKNOWN else error["input"])
    if isinstance(error["input"], str) and len(error["input"]) > MAX_PROMPT_CHARACTERS:
        value = f"{len(error['input'])} characters"
    nearest = nearest_sides(int(error["input"])) if error["type"] == "multiple_of" else ""
    return f"{label} must be {rule_of(model, error['loc'])}, not {value}{nearest}"


def did_you_mean(name: str, fields: list[str]) -> str:
    """The words that ask for the field which an unknown name resembles; nothing where it resembles none."""
    if name in Edit.model_fields and "prompt" in fields:
        return " (task edit takes it)"
    if name in PROMPT_NAMES and "prompt" in fields:
        return " (did you mean prompt?)"
    own = {alias: own for alias, own in ALIASES.items() if own in fields} | {one: one for one in fields}
    near = difflib.get_close_matches(name[:MAX_NAME], own, 1)
    is_close = difflib.get_close_matches(name[:MAX_NAME], near, 1, CLOSE)
    if not is_close and "prompt" in fields and PICTURE_NAME.search(name):
        return " (did you mean image?)" if "image" in fields else " (did you mean image? task edit takes it)"
    return f" (did you mean {near[0]}?)" if near else ""


def describe_lora_error(error: "ErrorDetails") -> str:
    """An error within one of `loras` in our words: the LoRA's number, its field, the rule, the value."""
    _, number, *rest = error["loc"]
    label = f"loras[{number}]"
    if not rest:
        return f"{label} must be an object of path, scale, not {short_json(error['input'])}"
    name = str(rest[0])
    if error["type"] in UNKNOWN:
        return f"{short_json(name)} is not a field of {label}; its fields are {', '.join(Lora.model_fields)}"
    if error["type"] == "missing":
        return f"{label}.{name} is required"
    return f"{label}.{name} must be {Lora.model_fields[name].description}, not {short_json(error['input'])}"


def rule_of(model: type[Request], place: "tuple[int | str, ...]") -> str:
    """The rule of the field that a place begins with; of one of `images` the rule for a single one."""
    name = str(place[0])
    if name == "images" and len(place) > 1:
        return IMAGE_RULE
    field = model.model_fields[name]
    if field.description:
        return field.description
    # The type of an optional field is a union, whose first member keeps the rule.
    return next(
        metadata.description
        for member in getattr(field.annotation, "__args__", ())
        for metadata in getattr(member, "__metadata__", ())
        if getattr(metadata, "description", None)
    )


def is_hidden(model: type[Request], name: str) -> bool:
    """Whether the task lacks a field that its base class has."""
    return name in model.hidden or model.model_fields[name].annotation is type(None)


def public_fields(model: type[Request]) -> list[str]:
    """The names of the task's fields, without aliases, those about steps and pictures last."""
    names = [name for name in model.model_fields if not is_hidden(model, name)]
    names.sort(key=(StepFields.model_fields | PictureFields.model_fields | ControlFields.model_fields).__contains__)
    return [public for name in names for public in (IMAGE_FIELDS if name == "images" else (name,))]
