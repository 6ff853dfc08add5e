"""What a job may ask for: one frozen model per task, with every limit beside its field.

Refuses, never repairs; `parsing.py` puts what is refused into words. Knows nothing of torch, diffusers or the SDK, nor
of which checkpoint will serve the job: what depends on that is refused by the `require_*` functions once it is known.
"""

import hashlib
import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import InvalidInput
from .sources import RULE as LORA_RULE
from .sources import is_source

MIN_SIDE, MAX_SIDE = 256, 2048  # pixels
SIDE_MULTIPLE = 16  # pixels a side: the VAE halves three times and the transformer takes 2 x 2 latents as one token
MAX_PROMPT_CHARACTERS = 2000
MAX_PROMPT_TOKENS = 1019  # the pipelines take 1,024 and their template ends with five of its own
MAX_SEED = 2**53 - 1  # the largest whole number that every JSON client holds exactly
MAX_IMAGES_IN = 3
MAX_IMAGE_CHARACTERS = 28_000_000  # base64 of 20 MB, the platform's largest request body
MAX_LORAS = 4

# Kept word for word in every reply as metadata.instruction, so that a caller sees what the model was told.
BACKGROUND_INSTRUCTION = (
    "Replace the background of the image with {prompt}. "
    "Keep the main subject exactly as it is: same shape, colours, pose, size and position."
)

IMAGE_FIELDS = ("image", "image_url", "images")


def whole(low: int, high: int, multiple: int = 1):
    rule = f"a whole number from {low} to {high}" + (f" and a multiple of {multiple}" if multiple > 1 else "")
    return Annotated[int, Field(ge=low, le=high, multiple_of=multiple, description=rule)]


Side = whole(MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE)
Text = Annotated[
    str,
    Field(max_length=MAX_PROMPT_CHARACTERS, description=f"Unicode text of at most {MAX_PROMPT_CHARACTERS} characters"),
]
IMAGE_RULE = "base64, a data URI or an http(s) URL of at most 20 MB"
ImageText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_IMAGE_CHARACTERS, description=IMAGE_RULE),
]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    task: ClassVar[str]


class Lora(BaseModel):
    """One of a job's `loras`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)
    path: Annotated[str, Field(strict=True, description=LORA_RULE)]
    scale: Annotated[float, Field(strict=True, ge=-4, le=4, description="a number from -4 to 4")] = 1.0

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, fields):
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields

    @field_validator("path")
    @classmethod
    def names_a_lora(cls, path: str) -> str:
        if not is_source(path):
            raise ValueError("names no LoRA")
        return path


class Health(Request):
    task = "health"


class Debug(Request):
    task = "debug"


class Drawing(Request):
    """What generate and the edits have in common."""

    prompt: Text
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: whole(1, 100) = 50
    guidance_scale: Annotated[float, Field(ge=1, le=20, description="a number from 1 to 20")] = 4.0
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}, or -1")] = -1
    num_images: whole(1, 4) = 1
    output_format: Annotated[
        Literal["png", "webp", "jpeg", "auto"], Field(description="'png', 'webp', 'jpeg' or 'auto'")
    ] = "png"
    output_quality: whole(1, 100) | None = None
    delivery: Annotated[Literal["auto", "inline", "url"], Field(description="'auto', 'inline' or 'url'")] | None = None
    preview: Annotated[bool, Field(description="true or false")] = False
    # Once parsed it says which preset the picture is drawn by, and steps and guidance are the preset's unless given.
    preset: (
        Annotated[Literal["quality", "balanced", "fast"], Field(description="'quality', 'balanced' or 'fast'")] | None
    ) = None
    loras: Annotated[
        tuple[Lora, ...],
        Field(max_length=MAX_LORAS, strict=False, description=f"a list of at most {MAX_LORAS} objects of path, scale"),
    ] = ()

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def plain_text(cls, text: str | None, info):
        if text is None:
            return None
        if info.field_name == "prompt" and not text.strip():
            raise ValueError("must not be empty")
        if special := re.search(r"<\|[^<>|]*\|>", text):
            raise ValueError(f"must not contain special tokens of the tokenizer such as {special.group()}")
        return text

    @property
    def instruction(self) -> str:
        """What the model is told."""
        return self.prompt

    @property
    def seeds(self) -> list[int]:
        """Image k is drawn from seed + k, so that each can be drawn again alone."""
        return [(self.seed + k) % (MAX_SEED + 1) for k in range(self.num_images)]


class Generate(Drawing):
    task = "generate"
    width: Side = 1024
    height: Side = 1024


class Edit(Drawing):
    task = "edit"
    images: Annotated[
        tuple[ImageText, ...],
        Field(
            min_length=1, max_length=MAX_IMAGES_IN, strict=False, description=f"a list of 1 to {MAX_IMAGES_IN} images"
        ),
    ]
    mask_image: ImageText | None = None
    strength: Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1")] = 1.0

    @model_validator(mode="after")
    def one_source(self):
        if len(self.images) > 1 and (self.mask_image or self.strength < 1):
            raise ValueError(f"mask_image and strength below 1 work on one image, not {len(self.images)}")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together: give both or neither")
        return self


class BackgroundReplacement(Edit):
    task = "background_replacement"
    mask_image: None = None

    @property
    def instruction(self) -> str:
        return BACKGROUND_INSTRUCTION.format(prompt=self.prompt.strip().rstrip("."))


TASKS: dict[str, type[Request]] = {
    model.task: model for model in (Generate, Edit, BackgroundReplacement, Health, Debug)
}


def seed_of(job_id: str) -> int:
    """The first 53 bits of SHA-256 of the job id: a redelivered job draws the same picture."""
    return int.from_bytes(hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).digest()[:7], "big") >> 3


def require_served(request: Drawing, multiple: int, most: int) -> None:
    """Refuse a size that the checkpoint's VAE would floor in silence, and more pictures than its class takes."""
    for name, side in (("width", request.width), ("height", request.height)):
        if side and side % multiple:
            raise InvalidInput(f"{name} must be a multiple of {multiple} for this checkpoint, not {side}")
    if isinstance(request, Edit) and len(request.images) > most:
        raise InvalidInput(f"images must hold at most {most} for this checkpoint, not {len(request.images)}")


def require_tokens(name: str, count: int) -> None:
    """Refuse a prompt that the pipeline would cut without a word."""
    if count > MAX_PROMPT_TOKENS:
        raise InvalidInput(f"{name} must be at most {MAX_PROMPT_TOKENS} tokens, not {count}")
