"""The types that fields of several tasks share: sides, texts and pictures, each with its limits and its rule in words.

Knows nothing of which task has which field (`request.py`).
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from ..errors import BeyondSchema
from .sources import RULE as LORA_RULE
from .sources import is_source
from .values import JsonSchema, ReadFirst, ReadNumber, ReadWhole

if TYPE_CHECKING:
    from pydantic import JsonValue
    from pydantic.fields import FieldInfo

MIN_SIDE, MAX_SIDE = 256, 2752  # pixels: the longest that any checkpoint draws; `served.py` has each one's own
SIDE_MULTIPLE = 16  # pixels: the VAE halves a side three times, and the transformer takes 2 x 2 latents as one token
MAX_RATIO = 8  # of the longer side to the shorter one; pictures beyond it break the pipelines' arithmetic
# No bound on meaning, which tokens are, but on what is counted: English has 4 to 5 characters a token, and the longest
# words some 20.
MAX_PROMPT_CHARACTERS = 20_000
MAX_IMAGE_CHARACTERS = 28_000_000  # base64 of 20 MB, the platform's largest request body


def whole_number(low: int, high: int, multiple: int = 1) -> "FieldInfo":
    """The limits of a field, and as its description the rule that a refusal names."""
    rule = f"a whole number from {low} to {high}" + (f" and a multiple of {multiple}" if multiple > 1 else "")
    return Field(ge=low, le=high, multiple_of=multiple, description=rule)


Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1"), ReadNumber]
Side = Annotated[int, whole_number(MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE), ReadWhole]
Text = Annotated[
    str,
    Field(max_length=MAX_PROMPT_CHARACTERS, description=f"Unicode text of at most {MAX_PROMPT_CHARACTERS} characters"),
]
TEXT_SCHEMA: JsonSchema = TypeAdapter[str](Text).json_schema()
IMAGE_RULE = "base64, a data URI or an http(s) URL of at most 20 MB"
Picture = Annotated[
    str,
    Field(min_length=1, max_length=MAX_IMAGE_CHARACTERS, description=IMAGE_RULE),
]
PICTURE_SCHEMA: JsonSchema = TypeAdapter[str](Picture).json_schema()
WRAPPED: JsonSchema = {
    "type": "object",
    "properties": {"image_url": PICTURE_SCHEMA},
    "required": ["image_url"],
    "additionalProperties": False,
}


def unwrap_url(image: "JsonValue") -> "JsonValue":
    """The URL or data URI of an image that OpenAI's JSON wraps as `{"image_url": "..."}`; any other value as it is."""
    return image["image_url"] if isinstance(image, dict) and list(image) == ["image_url"] else image


ImageText = Annotated[Picture, ReadFirst(unwrap_url, (WRAPPED,))]
IMAGE_SCHEMA: JsonSchema = TypeAdapter[str](ImageText).json_schema()


def unwrap_mask(mask: "JsonValue") -> "JsonValue":
    """The mask, also where it is wrapped as an image may be, or stands in a list alone."""
    return unwrap_url(mask[0] if isinstance(mask, list) and len(mask) == 1 else mask)


ONE_IMAGE: JsonSchema = {"type": "array", "items": IMAGE_SCHEMA, "minItems": 1, "maxItems": 1}
MaskText = Annotated[Picture, ReadFirst(unwrap_mask, (WRAPPED, ONE_IMAGE))]


class BrokenRule(ValueError):
    """What a validator of a model refuses. `beyond_schema`: the rule, which the model's JSON schema cannot say."""

    def __init__(self, sentence: str, beyond_schema: BeyondSchema):
        super().__init__(sentence)
        self.beyond_schema = beyond_schema


class Lora(BaseModel, frozen=True):
    """One of a job's `loras`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
    path: Annotated[str, Field(strict=True, description=LORA_RULE)]
    scale: Annotated[float, Field(strict=True, ge=-4, le=4, description="a number from -4 to 4"), ReadNumber] = 1.0

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, fields: "JsonValue") -> "JsonValue":
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @field_validator("path")
    @classmethod
    def require_source(cls, path: str) -> str:
        if not is_source(path):
            raise BrokenRule("names no LoRA", BeyondSchema.LORA_PATH)
        return path


LORA_FIELDS: dict[str, JsonSchema] = Lora.model_json_schema()["properties"]
