"""What a job may ask for: one frozen model for each task, with every limit beside its field.

The models refuse and never repair; `parsing.py` puts their refusals into words. They know nothing of torch, diffusers
or the SDK, nor of the checkpoint that will serve the job (`served.py`).
"""

import hashlib
import json
import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..errors import BeyondSchema
from .control import ControlFields
from .field_types import MAX_RATIO, BrokenRule, ImageText, Lora, MaskText, Side, Text, whole_number
from .picture_fields import PictureFields, WithoutPart
from .steps import StepFields, drawn_steps
from .values import MAX_EXACT, JsonSchema, ReadWhole

MAX_PROMPT_TOKENS = 1019  # the pipelines take 1,024 and their template ends with five of its own
MAX_SEED = 2**64 - 1  # what a seed of torch holds
MAX_IMAGES_IN = 10  # that any checkpoint takes; `served.py` has each one's own number
MAX_STARTS = 1  # pictures that generate takes: the one that it begins with
START_STRENGTH = 0.6  # of such a picture where the job says none: that of diffusers' image-to-image class
MAX_LORAS = 4
# Of the texts that `embed_parameters` writes twice into a JPEG, in UTF-16: its EXIF has 65,533 bytes, and numbers and
# names take a few thousand of them.
MAX_JPEG_TEXT_BYTES = 60_000

# The reply repeats the whole instruction as metadata.instruction, so that the caller sees the prompt that was drawn.
BACKGROUND_INSTRUCTION = (
    "Replace the background of the image with {prompt}. "
    "Keep the main subject exactly as it is: same shape, colours, pose, size and position."
)

# The form in which Qwen-Image-2.1 is asked for transparency: https://huggingface.co/Qwen/Qwen-Image-2.1
TRANSPARENT_INSTRUCTION = (
    "This is an RGBA image with transparency. {prompt} The image has alpha channel and the background is transparent."
)

# Of the square whose area input pictures have where Qwen-Image-2.1 looks at them, in pixels: below, little is left to
# see of a picture, and beyond, the model's makers draw nothing.
MIN_REFERENCE_SIDE, MAX_REFERENCE_SIDE = 512, 2080
REFERENCE_AREAS = MIN_REFERENCE_SIDE**2, MAX_REFERENCE_SIDE**2

IMAGE_FIELDS = ("image", "image_url", "images")
MATCH_SIZE = "match_input"  # the very width and height of the picture that is edited
SIZE_RULE = "WIDTHxHEIGHT, '1K', '2K' or 'match_input'"


class Request(BaseModel, frozen=True):
    """A job's input; the subclass is its task. Each subclass repeats `frozen=True` for the type checker alone."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    task: ClassVar[str]
    hidden: ClassVar[frozenset[str]] = frozenset()  # fields of a base class that are no fields of the task
    needs_prompt: ClassVar[bool] = True  # else it has an empty one where a job sends none


class Drawing(Request, PictureFields, StepFields, frozen=True):
    """A job that draws: the fields that generate and the edits have in common."""

    prompt: Text
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    # A size by its name, whose pixels depend on the checkpoint (`named_sizes.py`), in place of width and height.
    size: (
        Annotated[str, Field(pattern=r"^([0-9]{3,4}x[0-9]{3,4}|1K|2K|match_input)$", description=SIZE_RULE)] | None
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
    seed: Annotated[
        int, Field(ge=-1, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}, or -1"), ReadWhole
    ] = -1
    num_images: Annotated[int, whole_number(1, 4), ReadWhole] = 1
    output_format: Annotated[
        Literal["png", "webp", "jpeg", "avif", "auto"], Field(description="'png', 'webp', 'jpeg', 'avif' or 'auto'")
    ] = "auto"
    output_quality: Annotated[int, whole_number(1, 100), ReadWhole] | None = None
    # Whether what the model draws transparent stays so; auto: where it has drawn something so, and the file can.
    background: Annotated[
        Literal["auto", "transparent", "opaque"], Field(description="'auto', 'transparent' or 'opaque'")
    ] = "auto"
    # Whether WebP, and auto, keep every pixel; None for WebP without a quality, and for auto as far as there is room.
    lossless: Annotated[bool, Field(description="true or false")] | None = None
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
        if info.field_name == "prompt" and cls.needs_prompt and not text.strip():
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

    @model_validator(mode="after")
    def require_alpha_in_file(self) -> Self:
        if self.background == "transparent" and self.output_format == "jpeg":
            raise BrokenRule(
                "background 'transparent' is not for output_format jpeg, which has no transparency: send png, webp or "
                "auto",
                BeyondSchema.TOGETHER,
            )
        return self

    @model_validator(mode="after")
    def require_lossless_to_agree(self) -> Self:
        name = self.output_format
        sentence = ""
        if self.lossless and name in ("jpeg", "avif"):
            sentence = f"lossless is not to be had with output_format {name}; send png, webp or auto"
        elif self.lossless is False and name == "png":
            sentence = "lossless is always true with output_format png; send webp, jpeg or avif"
        elif self.lossless and name != "png" and self.output_quality:
            sentence = f"lossless and output_quality {self.output_quality} exclude each other: send one of them"
        if sentence:
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @model_validator(mode="after")
    def require_one_size_of_a_crop(self) -> Self:
        if self.mask_crop and (self.names_size or self.is_drawn_as_asked):
            sentence = "mask_crop true gives the picture its own size; send it without another size and draw_size"
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def names_size(self) -> bool:
        """Whether the job asks for another size than that of its own input picture."""
        sides = [name for name in ("width", "height") if name in self.model_fields_set and getattr(self, name)]
        return bool(sides or self.size not in (None, MATCH_SIZE)) or (":" in (self.aspect_ratio or "") and not self.fit)

    @property
    def is_drawn_as_asked(self) -> bool:
        """Whether the drawing has the size of the result, however the model looks at the input picture."""
        return False

    @property
    def may_crop(self) -> bool:
        """Whether the region around the mask may be drawn alone."""
        return self.is_masked and self.mask_crop is not False and not (self.names_size or self.is_drawn_as_asked)

    @property
    def instruction(self) -> str:
        """The text that the model gets where it is not rewritten (`Job.instruction`)."""
        return with_transparency(self.prompt) if self.background == "transparent" else self.prompt

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: picture k has seed + k, so that it can be drawn again alone."""
        return [(self.seed + k) % (MAX_SEED + 1) for k in range(self.num_images)]

    @property
    def picture_count(self) -> int:
        """How many pictures the reply will have."""
        return self.num_images

    @property
    def drawn_steps(self) -> int:
        """How many steps of the schedule are drawn, the last ones."""
        return drawn_steps(self.num_inference_steps, self.strength)

    @property
    def has_large_seed(self) -> bool:
        """Whether a seed is one that clients which hold numbers as JavaScript does would round."""
        return max(self.seeds) > MAX_EXACT


DRAWING_FIELDS: dict[str, JsonSchema] = Drawing.model_json_schema()["properties"]


class Generate(Drawing, ControlFields, frozen=True):
    """A picture from a prompt, and perhaps from one that the drawing begins with, or from control pictures."""

    task = "generate"
    width: Side = 1024
    height: Side = 1024
    images: Annotated[
        tuple[ImageText, ...],
        Field(max_length=MAX_STARTS, strict=False, description=f"a list of at most {MAX_STARTS} image"),
    ] = ()

    @model_validator(mode="after")
    def require_one_way_of_pictures(self) -> Self:
        if self.images and self.control_image:
            sentence = (
                "control_image and image do not go together: send the picture that is to be followed, or begun with"
            )
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self


class Edit(Drawing, frozen=True):
    """A picture from one or several pictures and a prompt. Without width and height it has a source's aspect."""

    task = "edit"
    images: Annotated[  # pyright: ignore[reportGeneralTypeIssues]  without a default here: it is required
        tuple[ImageText, ...],
        Field(
            min_length=1, max_length=MAX_IMAGES_IN, strict=False, description=f"a list of 1 to {MAX_IMAGES_IN} images"
        ),
    ]
    size_from: Annotated[int, whole_number(0, MAX_IMAGES_IN - 1), ReadWhole] = 0
    draw_size: Annotated[Literal["input", "asked"], Field(description="'input' or 'asked'")] = "input"
    # The most pixels in which the model looks at each input picture; for pipelines that can be told (`served.py`).
    reference_pixels: Annotated[int, whole_number(*REFERENCE_AREAS), ReadWhole] | None = None
    # Whether the edit is brought back to its input's place, and to its colours; the last one has both only measured.
    align: Annotated[bool, Field(description="true or false")] = False
    keep_colours: Annotated[bool, Field(description="true or false")] = False
    compare_input: Annotated[bool, Field(description="true or false")] = False

    @model_validator(mode="after")
    def require_fields_to_agree(self) -> Self:
        count = len(self.images)
        sentence = ""
        if self.size_from >= count:
            sentence = f"size_from must be below the number of images, {count}, not {self.size_from}"
        elif (self.width is None) != (self.height is None) and "x" not in (self.size or ""):
            sentence = "width and height go together: give both or neither"
        if sentence:
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def uses_pictures(self) -> bool:
        return True

    @property
    def is_drawn_as_asked(self) -> bool:
        return self.draw_size == "asked"


class BackgroundReplacement(WithoutPart, Edit, frozen=True):
    """An edit whose prompt names the new background alone."""

    task = "background_replacement"
    keep_subject: Annotated[Literal["exact"], Field(description="'exact'")] | None = None
    subject_mask: MaskText | None = None

    @model_validator(mode="after")
    def require_subject_of_one_image(self) -> Self:
        sentence = ""
        if self.keep_subject and not self.subject_mask:
            sentence = (
                "keep_subject 'exact' needs subject_mask, white where the subject is: the worker does not find it"
            )
        elif self.subject_mask and len(self.images) > 1:
            sentence = f"subject_mask works on one image, not {len(self.images)}"
        if sentence:
            raise BrokenRule(sentence, BeyondSchema.TOGETHER)
        return self

    @property
    def fields_of_part(self) -> list[str]:
        return ["subject_mask"] if self.subject_mask else []

    @property
    def keeps_size(self) -> bool:
        return self.subject_mask is not None

    @property
    def has_soft_mask(self) -> bool:
        return True

    @model_validator(mode="after")
    def require_a_background(self) -> Self:
        if self.background == "transparent":
            raise BrokenRule(
                "background 'transparent' is not for background_replacement, whose prompt describes the new "
                "background; task edit takes it",
                BeyondSchema.TOGETHER,
            )
        return self

    @property
    def instruction(self) -> str:
        """The prompt within a sentence that keeps the subject."""
        return BACKGROUND_INSTRUCTION.format(prompt=self.prompt.strip().rstrip("."))


def with_transparency(prompt: str) -> str:
    """The prompt in the form that asks the model for transparency; as it is where it is in that form already."""
    first, _, _ = TRANSPARENT_INSTRUCTION.partition("{prompt}")
    if first.strip().lower() in prompt.lower():
        return prompt
    text = prompt.strip()
    return TRANSPARENT_INSTRUCTION.format(prompt=text if text[-1:] in ".!?。！？" else f"{text}.")


def seed_of(job_id: str) -> int:
    """The first 53 bits of the job id's SHA-256, so that a job that is delivered twice draws the same picture."""
    return int.from_bytes(hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).digest()[:7], "big") >> 3
