"""The worker's settings: read from the environment once, each with its type, limits, default and description.

Knows nothing of what a setting causes. Variables that a library reads itself are no settings: `HF_HOME`, `HF_TOKEN`,
`TORCH_HOME`, and the SDK's `RUNPOD_*`.
"""

import difflib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from . import __version__
from .check_settings import CheckSettings
from .delivery_settings import DeliverySettings
from .errors import hide_secrets
from .model_settings import REMOVED_SPEEDUPS, ModelSettings, Role
from .preset_settings import PresetSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# By setting, the one that it has no effect without, and the value that this one must have if not any does.
NEEDED = {
    "QWEN_SAFETY_THRESHOLD": ("QWEN_SAFETY_MODEL", None),
    "QWEN_REWRITE_MODEL": ("QWEN_REWRITE_URL", None),
    "QWEN_REWRITE_KEY": ("QWEN_REWRITE_URL", None),
    "QWEN_C2PA_CERTIFICATE": ("QWEN_MARK", "c2pa"),
    "QWEN_C2PA_KEY": ("QWEN_MARK", "c2pa"),
}


class Fallback(StrEnum):
    """What happens when a model cannot be loaded."""

    ALLOW = "allow"  # answer with a PIL stand-in that says so
    FORBID = "forbid"  # fail the job with model_unavailable
    FORCE = "force"  # never load: the rollback plan


class ServerMode(StrEnum):
    RUNPOD = "runpod"  # take jobs from the platform's queue
    LOCAL = "local"  # serve the SDK's local HTTP API


class UnknownFields(StrEnum):
    """What happens to a job with a field that no task or another task has."""

    REFUSE = "refuse"
    WARN = "warn"  # draw without the field, and say so in the reply


class Misconfigured(Exception):
    """A setting cannot be used; the message names its variable."""


def hub_home() -> Path:
    """The folder `HF_HOME`, in which the hub's client keeps its files and the worker keeps its caches."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def read_settings() -> "Settings":
    """The settings of this process's environment. Raises `Misconfigured` with one sentence for each wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise Misconfigured("; ".join(map(describe_error, error.errors()))) from None


def environment_warnings(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each QWEN_ variable that is no setting or has no effect, or names what there is not."""
    settings = list(Settings.model_fields)
    warnings: list[str] = []
    for name in sorted(name for name in environment if name.startswith("QWEN_") and name not in settings):
        similar = difflib.get_close_matches(name, settings, 1)
        warnings.append(f"{name} is no setting of this worker" + (f"; {similar[0]} is" if similar else ""))
    for name, (needed, value) in NEEDED.items():
        found = environment.get(needed)
        if environment.get(name) and (not found if value is None else found != value):
            warnings.append(f"{name} has no effect without {needed}" + (f"={value}" if value else ""))
    speedups, preloaded, served = (
        {part.strip() for part in environment.get(name, "").split(",")}
        for name in ("QWEN_SPEEDUPS", "QWEN_PRELOAD", "QWEN_TASKS")
    )
    removed = sorted(speedups & REMOVED_SPEEDUPS)
    warnings += [f"QWEN_SPEEDUPS names {name}, which this worker does not have any more" for name in removed]
    idle = sorted(preloaded & {*Role} - served) if served & {*Role} else []
    return warnings + [f"QWEN_PRELOAD names {role}, which QWEN_TASKS does not: it is not loaded" for role in idle]


def describe_error(error: "ErrorDetails") -> str:
    """One of pydantic's errors in a line. A LoRA's is left out: in broken JSON a URL's end may not be seen."""
    if not error["loc"]:  # of several variables, which the sentence names
        return error["msg"].removeprefix("Value error, ")
    place, value = ".".join(map(str, error["loc"])), error["input"]
    hidden = place.partition(".")[0].endswith(("_LORA", "_LORAS")) and not isinstance(value, int | float)
    rule = error["msg"].removeprefix("Value error, ")
    quoted = hide_secrets(value) if isinstance(value, str) else value
    return f"{place}: {rule}" + ("" if hidden else f", not {quoted!r}")


class Settings(ModelSettings, PresetSettings, DeliverySettings, CheckSettings):
    """Each field is set by the environment variable of the same name; an empty variable counts as absent."""

    model_config = SettingsConfigDict(
        case_sensitive=True, frozen=True, env_ignore_empty=True, extra="ignore", allow_inf_nan=False
    )

    QWEN_FALLBACK: Fallback = Field(
        default=Fallback.ALLOW,
        description=(
            "What a job gets when its model cannot be loaded. allow: a stand-in picture that says so. forbid: the "
            "error model_unavailable. force: no model is loaded, and every job gets a stand-in."
        ),
    )
    QWEN_UNKNOWN_FIELDS: UnknownFields = Field(
        default=UnknownFields.REFUSE,
        description="Fields that a task does not take. refuse: the job is refused. warn: a warning names them.",
    )
    QWEN_FETCH_SECONDS: float = Field(
        default=20, gt=0, description="How long fetching one input image from its URL may take, in seconds."
    )
    QWEN_JOB_SECONDS: float | None = Field(
        default=None,
        gt=0,
        description=(
            "How long a job may take whose policy.executionTimeout does not say, in seconds. Without it: as long as it "
            "needs."
        ),
    )
    QWEN_SHUTDOWN_SECONDS: float = Field(
        default=25, ge=0, description="How long running jobs may go on after SIGTERM before they are ended, in seconds."
    )
    # The default is longer than the 600 seconds for which the SDK waits for an answer when it posts a result.
    QWEN_STUCK_SECONDS: float = Field(
        default=900,
        gt=0,
        description="How many seconds a job may hold its slot after its end or its stop before the worker ends.",
    )
    QWEN_CONCURRENCY: int = Field(
        default=1,
        ge=1,
        le=4,
        description=(
            "How many jobs the worker holds at once, times QWEN_BATCH. Above 1, the next job's pictures are fetched "
            "while one is drawn; drawing stays one call at a time."
        ),
    )
    QWEN_BATCH: int = Field(
        default=1,
        ge=1,
        le=8,
        description="How many small pictures may share one call of the pipeline. 1: each has a call of its own.",
    )
    QWEN_PROGRESS_SECONDS: float = Field(
        default=1, ge=0, description="The least time between two progress messages of a job, in seconds. 0 sends none."
    )
    STREAM: bool = Field(
        default=False,
        description="Whether a job is answered with a list that can be streamed: its progress, then its reply.",
    )
    QWEN_PROMPT_CACHE_MB: float = Field(
        default=256,
        ge=0,
        description="The most RAM that text encodings may take to be used again, in MB. 0 keeps none.",
    )
    QWEN_WORKER_VERSION: str = Field(
        default=__version__, description="The version of the image, which replies and health repeat."
    )
    SERVER_MODE: ServerMode = Field(
        default=ServerMode.RUNPOD,
        description="Where jobs come from. runpod: the platform's queue. local: the SDK's HTTP API on port 8000.",
    )
