"""The settings of presets and LoRAs; part of `settings.py`, and like it without a notion of what they cause."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

# Where LoRA files lie that jobs may name: a network volume, the image.
LORA_ROOTS = ("/runpod-volume/loras", "/opt/qwen-image/loras")


class Preset(StrEnum):
    """How a picture is drawn where its job does not say."""

    QUALITY = "quality"
    BALANCED = "balanced"
    FAST = "fast"


class OwnLora(BaseModel):
    """A LoRA of the endpoint's own: part of every picture of its task, or of both tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    path: str = Field(min_length=1)
    scale: float = 1.0
    task: Literal["generate", "edit"] | None = None


class PresetSettings(BaseSettings):
    # The number of steps belongs to the file: a LoRA made for 8 draws badly in 4. All published ones have it in their
    # names, so that it cannot be forgotten when the file is changed; the setting is for files that were renamed.
    QWEN_FAST_STEPS: int | None = Field(
        None,
        ge=1,
        le=16,
        description="The steps of preset fast, where the name of its LoRA does not say them (as 8steps does).",
    )
    QWEN_IMAGE_FAST_LORA: str | None = Field(
        None,
        description=(
            "The few-step LoRA of preset fast for text to image: ORG/NAME/FILE.safetensors of the hub, a URL, a file "
            "or a folder."
        ),
    )
    QWEN_EDIT_FAST_LORA: str | None = Field(
        None, description="The few-step LoRA of preset fast for edits, named like QWEN_IMAGE_FAST_LORA."
    )
    QWEN_PRESET: Preset = Field(
        Preset.QUALITY,
        description="The preset of jobs that name none, where their model serves it. Else they have quality.",
    )
    QWEN_LORAS: Annotated[tuple[OwnLora, ...], NoDecode] = Field(
        (),
        description=(
            'The LoRAs of every picture, as JSON: [{"path": "ORG/NAME", "scale": 0.8, "task": "edit"}]. Without a '
            "task, a LoRA is for both models."
        ),
    )
    QWEN_LORA_ROOTS: Annotated[tuple[Path, ...], NoDecode] = Field(
        tuple(Path(root) for root in LORA_ROOTS),
        description="The folders whose LoRA files jobs may name, separated by colons.",
    )
    QWEN_LORA_MB: float = Field(2000, ge=0, description="The largest LoRA that a job may bring, in MB. 0 refuses all.")
    QWEN_LORA_CACHE_GB: float = Field(
        10,
        gt=0,
        description="The most disk for LoRAs from the hub, and as much again for those from URLs, in GB (1e9 bytes).",
    )
    QWEN_LORA_SECONDS: float = Field(120, gt=0, description="How long fetching one LoRA may take, in seconds.")

    @property
    def own_loras(self) -> int:
        """How many LoRAs a picture may be drawn with that the endpoint itself has."""
        return bool(self.QWEN_IMAGE_FAST_LORA or self.QWEN_EDIT_FAST_LORA) + len(self.QWEN_LORAS)

    @field_validator("QWEN_IMAGE_FAST_LORA", "QWEN_EDIT_FAST_LORA")
    @classmethod
    def says_its_steps(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and steps_in(value) is None and not info.data.get("QWEN_FAST_STEPS"):
            raise ValueError("must say its number of steps in its name (such as 8steps), or QWEN_FAST_STEPS must")
        return value

    @field_validator("QWEN_PRESET")
    @classmethod
    def can_be_served(cls, value: Preset, info: ValidationInfo) -> Preset:
        if value is Preset.FAST and not (info.data.get("QWEN_IMAGE_FAST_LORA") or info.data.get("QWEN_EDIT_FAST_LORA")):
            raise ValueError("fast needs QWEN_IMAGE_FAST_LORA or QWEN_EDIT_FAST_LORA")
        return value

    @field_validator("QWEN_LORAS", mode="before")
    @classmethod
    def decode_list(cls, value):
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('must be JSON such as [{"path": "ORG/NAME", "scale": 0.8}]') from None

    @field_validator("QWEN_LORA_ROOTS", mode="before")
    @classmethod
    def split_lora_roots(cls, value):
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value


def steps_in(name: str) -> int | None:
    """The number of steps that a few-step LoRA has in its file's name, as in Qwen-Image-Lightning-8steps-V1.1."""
    path = urlsplit(name).path if "://" in name else name
    # Not of a version ("v2-step...") nor of a training run's count ("epoch=10-step=500").
    said = r"(?<![\dv])(?<!\d\.)(\d{1,2})[-_ ]?step(?:s|(?![-_= ]?\d))"
    found = re.search(said, path.rstrip("/").rpartition("/")[2].lower())
    return int(found[1]) if found and 1 <= int(found[1]) <= 16 else None
