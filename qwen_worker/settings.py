"""The worker's settings: read from the environment once, each with its type, limits, default and description.

Knows nothing of what a setting causes. Variables that a library reads itself are no settings: `HF_HOME`, `HF_TOKEN`,
`TORCH_HOME`, and the SDK's `RUNPOD_*`.
"""

import difflib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from . import __version__
from .check_settings import CheckSettings
from .delivery_settings import DeliverySettings
from .errors import hide_secrets
from .preset_settings import Folders, PresetSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Weights are looked for in this order: among the platform's cached models, in the image, on a network volume.
MODEL_ROOTS = ("/runpod-volume/huggingface-cache/hub", "/opt/qwen-image/models", "/runpod-volume/models")
LOAD_THREADS = 8  # this many readers keep one drive at full speed, and hide the latency of a network volume
# QWEN_SPEEDUPS may still name them, with a warning: endpoints that were set up for a former version go on starting.
REMOVED_SPEEDUPS = frozenset({"qkv", "channels_last"})
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


class Precision(StrEnum):
    """How the transformer's matrices are stored; layers whose output suffers from it stay in bfloat16."""

    AUTO = "auto"  # on CUDA the most exact precision that fits, on the CPU fp32
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"  # e4m3, a scale for each row; needs compute capability 8.9 or later
    INT8 = "int8"  # a scale for each row
    NF4 = "nf4"  # 4-bit normal floats


class Saving(StrEnum):
    """Ways of taking less memory that leave the pictures as they are."""

    TABLE = "table"  # modulation is looked up by timestep, where the card is too small for its weights
    SINGLE_FRAME = "single_frame"  # the VAE without the cache that only videos need
    CONV2D = "conv2d"  # the VAE's causal 3-D convolutions as 2-D ones: equal to about 1e-6
    # The text encoder without its language head, and without vision where nothing is edited; where it has vision, its
    # first layer as a matrix product, if torch computes it slowly.
    TRIM = "trim"


class Prepared(StrEnum):
    """Which prepared checkpoints are used, of those that match the model and its plan."""

    SAME_CARD = "same_card"  # only those that a card like the worker's computed: equal to the last bit
    ANY_CARD = "any_card"
    OFF = "off"


class SelfCheck(StrEnum):
    """Whether a loaded model's optimisations are compared with the plain way."""

    AUTO = "auto"  # on a GPU
    ON = "on"
    OFF = "off"


class Speedup(StrEnum):
    """Ways of drawing faster that leave the pictures as they are, up to rounding."""

    COMPILE = "compile"  # the transformer's block by torch.compile
    ROTARY = "rotary"  # the rotary embedding without complex numbers, which no compiler fuses
    GUIDANCE = "guidance"  # guidance's two passes in one call where the picture is small
    ATTENTION = "attention"  # attention by cuDNN on the cards where it is the fastest


class Role(StrEnum):
    """Which of the endpoint's two models is meant."""

    GENERATE = "generate"
    EDIT = "edit"

    @classmethod
    def of(cls, task: str) -> "Role":
        """The role of the model that serves the task: every task but generate is an edit."""
        return cls.GENERATE if task == "generate" else cls.EDIT


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


class Settings(PresetSettings, DeliverySettings, CheckSettings):
    """Each field is set by the environment variable of the same name; an empty variable counts as absent."""

    model_config = SettingsConfigDict(
        case_sensitive=True, frozen=True, env_ignore_empty=True, extra="ignore", allow_inf_nan=False
    )

    QWEN_IMAGE_MODEL: str = Field(
        default="Qwen/Qwen-Image", description="The checkpoint for text to image: a hub id, id@revision, or a folder."
    )
    QWEN_EDIT_MODEL: str = Field(
        default="Qwen/Qwen-Image-Edit", description="The checkpoint for edits: a hub id, id@revision, or a folder."
    )
    QWEN_IMAGE_TRANSFORMER: str | None = Field(
        default=None,
        description=(
            "A transformer in the place of QWEN_IMAGE_MODEL's own, whose other parts are used: a .safetensors or .gguf "
            "file, ORG/NAME/FILE of the hub, the folder of a transformer here or on the hub, or a URL."
        ),
    )
    QWEN_EDIT_TRANSFORMER: str | None = Field(
        default=None,
        description="A transformer in the place of QWEN_EDIT_MODEL's own, named like QWEN_IMAGE_TRANSFORMER.",
    )
    QWEN_TASKS: Annotated[frozenset[Role], NoDecode] = Field(
        default=frozenset(Role),
        min_length=1,
        description=(
            "What the endpoint serves: generate, edit (background_replacement too), or generate,edit. Other jobs are "
            "refused, and the model for them is neither loaded nor given room."
        ),
    )
    QWEN_FALLBACK: Fallback = Field(
        default=Fallback.ALLOW,
        description=(
            "What a job gets when its model cannot be loaded. allow: a stand-in picture that says so. forbid: the "
            "error model_unavailable. force: no model is loaded, and every job gets a stand-in."
        ),
    )
    QWEN_PRECISION: Precision = Field(
        default=Precision.AUTO,
        description=(
            "The precision of the transformer's matrices. auto: on a GPU the most exact one that fits, on a CPU fp32. "
            "bf16 and fp32 are exact; fp8 (compute capability 8.9 or later), int8 and nf4 change the pictures a "
            "little."
        ),
    )
    QWEN_SAVINGS: Annotated[frozenset[Saving], NoDecode] = Field(
        default=frozenset(Saving),
        description=(
            "The exact savings of memory that may be used: a comma-separated list of table, single_frame, conv2d and "
            "trim, or none."
        ),
    )
    QWEN_SPEEDUPS: Annotated[frozenset[Speedup] | None, NoDecode] = Field(
        default=None,
        description=(
            "The ways of drawing faster that may be used: auto, none, or a comma-separated list of compile, rotary, "
            "guidance and attention. auto: on a GPU all four, on a CPU none."
        ),
    )
    QWEN_COMPILED_FOLDER: Path | None = Field(
        default=None,
        description=(
            "The folder in which compiled blocks are kept from one start to the next. Without it: qwen-image-compiled "
            "below HF_HOME."
        ),
    )
    QWEN_COMPILED_MB: float = Field(
        default=500, ge=0, description="The most disk that compiled blocks may take, in MB. 0 keeps none."
    )
    QWEN_SELF_CHECK: SelfCheck = Field(
        default=SelfCheck.AUTO,
        description=(
            "Whether each optimisation is compared with the plain way when a model is first loaded on a kind of card. "
            "auto: on a GPU. on: also on a CPU. off: never."
        ),
    )
    QWEN_VRAM_GB: float | None = Field(
        default=None,
        gt=0,
        description="The most GPU memory that the worker may use, in GB (1e9 bytes). Without it: all of the card's.",
    )
    QWEN_MODEL_ROOTS: Folders = Field(
        default=tuple(Path(root) for root in MODEL_ROOTS),
        description="The folders in which weights may lie, separated by colons, in the order of the search.",
    )
    QWEN_LOAD_THREADS: int = Field(
        default=LOAD_THREADS,
        ge=0,
        le=64,
        description="The number of threads that read weights. 0: the libraries read, without prepared checkpoints.",
    )
    QWEN_PREPARED: Prepared = Field(
        default=Prepared.SAME_CARD,
        description=(
            "The prepared checkpoints that may be used. same_card: those that were computed on a card like the "
            "worker's. any_card: also those of other cards, which may round differently. off: none."
        ),
    )
    QWEN_PRELOAD: Annotated[frozenset[Role], NoDecode] = Field(
        default=frozenset(),
        description="The models that are loaded before the first job is taken: generate, edit, or generate,edit.",
    )
    QWEN_LOAD_RETRY_SECONDS: float = Field(
        default=60,
        ge=0,
        description="The pause before a load is tried again that failed for a reason which may pass, in seconds.",
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

    @field_validator("QWEN_SAVINGS", "QWEN_PRELOAD", "QWEN_TASKS", mode="before")
    @classmethod
    def split_list(cls, value: Any) -> Any:
        """Split a comma-separated list. `none` is the empty one, since an empty variable counts as absent."""
        if not isinstance(value, str):
            return value
        return frozenset(part.strip() for part in value.split(",") if part.strip() not in ("", "none"))

    @field_validator("QWEN_SPEEDUPS", mode="before")
    @classmethod
    def split_speedups(cls, value: Any) -> Any:
        names = None if value == "auto" else cls.split_list(value)
        return names and names - REMOVED_SPEEDUPS
