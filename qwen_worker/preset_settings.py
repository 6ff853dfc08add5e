"""The settings of presets and LoRAs, the part of `settings.py` that has rules of its own.

Knows nothing of what a setting causes.
"""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

# The folders whose LoRA files jobs may name: one on a network volume, one in the image.
LORA_ROOTS = ("/runpod-volume/loras", "/opt/qwen-image/loras")

# The steps of few-step LoRAs whose files' names do not say them, by repository, in lower case.
STEPS_BY_REPOSITORY = {"lightx2v/qwen-image-2.1-lightning": 4}


def split_folders(value: Any) -> Any:
    """Split a colon-separated list of folders, as PATH is one."""
    return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value


Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_folders)]


class Preset(StrEnum):
    """What sets a picture's steps and guidance where its job does not."""

    QUALITY = "quality"
    BALANCED = "balanced"
    FAST = "fast"


class OwnLora(BaseModel):
    """A LoRA of the endpoint's own: every picture of its task, or of both tasks, is drawn with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    path: str = Field(min_length=1)
    scale: float = 1.0
    task: Literal["generate", "edit"] | None = None


class PresetSettings(BaseSettings):
    # A few-step LoRA draws well in the number of steps that it was made for, and badly in any other. Published files
    # have that number in their names, which goes with the file when the operator changes it. This setting is for files
    # that were renamed.
    QWEN_FAST_STEPS: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="The steps of preset fast, where the name of its LoRA does not say them (as 8steps does).",
    )
    QWEN_IMAGE_FAST_LORA: str | None = Field(
        default=None,
        description=(
            "The few-step LoRA of preset fast for text to image: ORG/NAME/FILE.safetensors of the hub, a URL, a file "
            "or a folder."
        ),
    )
    QWEN_EDIT_FAST_LORA: str | None = Field(
        default=None, description="The few-step LoRA of preset fast for edits, named like QWEN_IMAGE_FAST_LORA."
    )
    QWEN_PRESET: Preset = Field(
        default=Preset.QUALITY,
        description="The preset of jobs that name none, where their model serves it. Else they have quality.",
    )
    QWEN_LORAS: Annotated[tuple[OwnLora, ...], NoDecode] = Field(
        default=(),
        description=(
            'The LoRAs of every picture, as JSON: [{"path": "ORG/NAME", "scale": 0.8, "task": "edit"}]. Without a '
            "task, a LoRA is for both models."
        ),
    )
    QWEN_LORA_ROOTS: Folders = Field(
        default=tuple(Path(root) for root in LORA_ROOTS),
        description="The folders whose LoRA files jobs may name, separated by colons.",
    )
    QWEN_LORA_MB: float = Field(
        default=2000, ge=0, description="The largest LoRA that a job may bring, in MB. 0 refuses all."
    )
    QWEN_LORA_CACHE_GB: float = Field(
        default=10,
        gt=0,
        description="The most disk for LoRAs from the hub, and as much again for those from URLs, in GB (1e9 bytes).",
    )
    QWEN_LORA_SECONDS: float = Field(default=120, gt=0, description="How long fetching one LoRA may take, in seconds.")

    @property
    def own_lora_count(self) -> int:
        """How many LoRAs of the endpoint's own a picture may be drawn with: a preset's, and those of QWEN_LORAS."""
        return bool(self.QWEN_IMAGE_FAST_LORA or self.QWEN_EDIT_FAST_LORA) + len(self.QWEN_LORAS)

    @field_validator("QWEN_IMAGE_FAST_LORA", "QWEN_EDIT_FAST_LORA")
    @classmethod
    def require_steps(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and steps_in(value) is None and not info.data.get("QWEN_FAST_STEPS"):
            raise ValueError("must say its number of steps in its name (such as 8steps), or QWEN_FAST_STEPS must")
        return value

    @field_validator("QWEN_PRESET")
    @classmethod
    def require_fast_lora(cls, value: Preset, info: ValidationInfo) -> Preset:
        if value is Preset.FAST and not (info.data.get("QWEN_IMAGE_FAST_LORA") or info.data.get("QWEN_EDIT_FAST_LORA")):
            raise ValueError("fast needs QWEN_IMAGE_FAST_LORA or QWEN_EDIT_FAST_LORA")
        return value

    @field_validator("QWEN_LORAS", mode="before")
    @classmethod
    def decode_loras(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('must be JSON such as [{"path": "ORG/NAME", "scale": 0.8}]') from None


def steps_in(name: str) -> int | None:
    """The number of steps, 1 to 16, in the file name of a few-step LoRA such as Qwen-Image-Lightning-8steps-V1.1.

    Of a repository whose file has another name, the number that its maker gives.
    """
    try:
        path = urlsplit(name).path if "://" in name else name
    except ValueError:  # no URL, which whoever fetches it refuses
        return None
    # Two other numbers before "step" are not meant: a version's ("v2-step..."), a training run's ("epoch=10-step=500").
    pattern = r"(?<![\dv])(?<!\d\.)(\d{1,2})[-_ ]?step(?:s|(?![-_= ]?\d))"
    match = re.search(pattern, path.rstrip("/").rpartition("/")[2].lower())
    if match and 1 <= int(match[1]) <= 16:
        return int(match[1])
    repository = "/".join(path.lower().partition("@")[0].strip("/").split("/")[:2])
    return STEPS_BY_REPOSITORY.get(repository)
