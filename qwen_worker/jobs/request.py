"""What a job may ask for: one frozen model for each task, with every limit beside its field.

The models refuse and never repair; `parsing.py` puts their refusals into words. They know nothing of torch, diffusers
or the SDK, nor of the checkpoint that will serve the job (`served.py`).
"""

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..errors import BeyondSchema
from .control import ControlFields
from .field_types import MAX_RATIO, BrokenRule, ImageText, MaskText, Side, Text, whole_number
from .sources import RULE as LORA_RULE
from .sources import is_source
from .values import MAX_EXACT, JsonSchema, ReadGuidance, ReadNumber, ReadWhole

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_PROMPT_TOKENS = 1019  # the pipelines take 1,024 and their template ends with five of its own
MAX_SEED = 2**64 - 1  # what a seed of torch holds
MAX_IMAGES_IN = 3
MAX_LORAS = 4
# Of the texts that `embed_parameters` writes twice into a JPEG, in UTF-16: its EXIF has 65,533 bytes, and numbers and
# names take a few thousand of them.
MAX_JPEG_TEXT_BYTES = 60_000

# The reply repeats the whole instruction as metadata.instruction, so that the caller sees the prompt that was drawn.
BACKGROUND_INSTRUCTION = (
    "Replace the background of the image with {prompt}. "
    "Keep the main subject exactly as it is: same shape, colours, pose, size and position."
)

IMAGE_FIELDS = ("image", "image_url", "images")
MASK_FIELDS = ("mask_image", "mask_from")


class Request(BaseModel, frozen=True):
    """A job's input; the subclass is its task. Each subclass repeats `frozen=True` for the type checker alone."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    task: ClassVar[str]


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


class Health(Request, frozen=True):
    """How the worker is."""

    task = "health"


class Debug(Request, frozen=True):
    """The versions of packages and the settings."""

    task = "debug"


class Schema(Request, frozen=True):
    """The JSON schema of a job's input."""

    task = "schema"


class Drawing(Request, frozen=True):
    """A job that draws: the fields that generate and the edits have in common."""

    prompt: Text
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    # A size by its name, whose pixels depend on the checkpoint (`named_sizes.py`), in place of width and height.
    size: (
        Annotated[str, Field(pattern=r"^([0-9]{3,4}x[0-9]{3,4}|1K|2K)$", description="WIDTHxHEIGHT, '1K' or '2K'")]
        | None
    ) = None
    aspect_ratio: (
        Annotated[
            str,
            Field(
                pattern=r"^([0-9.]+:[0-9.]+|match_input_image)$",
                description=f"WIDTH:HEIGHT from 1:{MAX_RATIO} to {MAX_RATIO}:1, or 'match_input_image'",
            ),
        ]
        | None
    ) = None
    num_inference_steps: Annotated[int, whole_number(1, 100), ReadWhole] = 50
    guidance_scale: Annotated[float, Field(ge=1, le=20, description="0 or a number from 1 to 20"), ReadGuidance] = 4.0
    seed: Annotated[
        int, Field(ge=-1, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}, or -1"), ReadWhole
    ] = -1
    num_images: Annotated[int, whole_number(1, 4), ReadWhole] = 1
    output_format: Annotated[
        Literal["png", "webp", "jpeg", "auto"], Field(description="'png', 'webp', 'jpeg' or 'auto'")
    ] = "auto"
    output_quality: Annotated[int, whole_number(1, 100), ReadWhole] | None = None
    delivery: Annotated[Literal["auto", "inline", "url"], Field(description="'auto', 'inline' or 'url'")] | None = None
    # Absent: the endpoint's, as `response_shapes.shape_of` says.
    response_shape: (
        Annotated[
            Literal["worker", "runpod-public", "fal", "replicate"],
            Field(description="'worker', 'runpod-public', 'fal' or 'replicate'"),
        ]
        | None
    ) = None
    preview: Annotated[bool, Field(description="true or false")] = False
    embed_parameters: Annotated[bool, Field(description="true or false")] = False
    prompt_extend: Annotated[bool, Field(description="true or false")] = False
    enable_safety_checker: Annotated[bool, Field(description="true or false")] | None = None
    # `Presets.apply` fills this in, and with it the steps and guidance that the job does not set.
    preset: (
        Annotated[Literal["quality", "balanced", "fast"], Field(description="'quality', 'balanced' or 'fast'")] | None
    ) = None
    loras: Annotated[
        tuple[Lora, ...],
        Field(
            max_length=MAX_LORAS,
            strict=False,
            description=f"a list of at most {MAX_LORAS} objects, each with path and perhaps scale",
        ),
    ] = ()

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def refuse_special_tokens(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None:
            return None
        if info.field_name == "prompt" and not text.strip():
            raise BrokenRule("must not be empty", BeyondSchema.WORDS)
        if special := re.search(r"<\|[^<>|]*\|>", text):
            sentence = f"must not contain special tokens of the tokenizer such as {special.group()}"
            raise BrokenRule(sentence, BeyondSchema.WORDS)
        return text

    @model_validator(mode="after")
    def require_room_for_parameters(self) -> Self:
        """Refuse texts that the file has no room for: as they are, and once more as JSON."""
        if self.embed_parameters and self.output_format == "jpeg":
            texts = [self.prompt, self.negative_prompt or "", *(lora.path for lora in self.loras)]
            written = "".join(text + json.dumps(text) for text in texts)
            if (size := len(written.encode("utf-16-le"))) > MAX_JPEG_TEXT_BYTES:
                raise BrokenRule(
                    f"embed_parameters writes {size} bytes of text into each file, and with output_format jpeg there "
                    f"is room for {MAX_JPEG_TEXT_BYTES}; send png or webp, or shorter prompts",
                    BeyondSchema.TOGETHER,
                )
        return self

    @property
    def instruction(self) -> str:
        """The text that the model gets where it is not rewritten (`Job.instruction`)."""
        return self.prompt

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: picture k has seed + k, so that it can be drawn again alone."""
        return [(self.seed + k) % (MAX_SEED + 1) for k in range(self.num_images)]

    @property
    def has_large_seed(self) -> bool:
        """Whether a seed is one that clients which hold numbers as JavaScript does would round."""
        return max(self.seeds) > MAX_EXACT


DRAWING_FIELDS: dict[str, JsonSchema] = Drawing.model_json_schema()["properties"]


class Generate(Drawing, ControlFields, frozen=True):
    """A picture from a prompt, and perhaps from control pictures."""

    task = "generate"
    width: Side = 1024
    height: Side = 1024


class Edit(Drawing, frozen=True):
    """A picture from one to three pictures and a prompt. Without width and height it has a source's aspect."""

    task = "edit"
    images: Annotated[
        tuple[ImageText, ...],
        Field(
            min_length=1, max_length=MAX_IMAGES_IN, strict=False, description=f"a list of 1 to {MAX_IMAGES_IN} images"
        ),
    ]
    mask_image: MaskText | None = None
    # Whether the mask's transparent or its white pixels are repainted; None where its colours say it by themselves.
    mask_from: Annotated[Literal["alpha", "white"], Field(description="'alpha' or 'white'")] | None = None
    size_from: Annotated[int, whole_number(0, MAX_IMAGES_IN - 1), ReadWhole] = 0
    strength: Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1"), ReadNumber] = 1.0
    draw_size: Annotated[Literal["input", "asked"], Field(description="'input' or 'asked'")] = "input"

    @model_validator(mode="after")
    def require_fields_to_agree(self) -> Self:
        count = len(self.images)
        sentence = ""
        if count > 1 and (self.mask_image or self.strength < 1):
            sentence = f"mask_image and strength below 1 work on one image, not {count}"
        elif self.mask_from and not self.mask_image:
            sentence = "mask_from says how mask_image is read, and mask_image is not given"
        elif self.size_from >= count:
            sentence = f"size_from must be below the number of images, {count}, not {self.size_from}"
        elif (self.width is None) != (self.height is None) and "x" not in (self.size or ""):
            sentence = "width and height go together: give both or neither"
        if sentence:
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self


class BackgroundReplacement(Edit, frozen=True):
    """An edit whose prompt names the new background alone."""

    task = "background_replacement"
    mask_image: None = None
    mask_from: None = None

    @property
    def instruction(self) -> str:
        """The prompt within a sentence that keeps the subject."""
        return BACKGROUND_INSTRUCTION.format(prompt=self.prompt.strip().rstrip("."))


TASKS: dict[str, type[Request]] = {
    model.task: model for model in (Generate, Edit, BackgroundReplacement, Health, Debug, Schema)
}


def seed_of(job_id: str) -> int:
    """The first 53 bits of the job id's SHA-256, so that a job that is delivered twice draws the same picture."""
    return int.from_bytes(hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).digest()[:7], "big") >> 3
