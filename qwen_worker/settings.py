"""The environment, read once, typed. Knows nothing of what the settings cause.

Only what the worker itself decides by is here; `HF_HOME`, `HF_TOKEN` and `TORCH_HOME` are read by their libraries, the
`RUNPOD_*` variables by the SDK.
"""

import difflib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from . import __version__
from .preset_settings import PresetSettings

# Where weights may already lie, in the order they are looked for: the platform's cached models, the image, a volume.
MODEL_ROOTS = ("/runpod-volume/huggingface-cache/hub", "/opt/qwen-image/models", "/runpod-volume/models")


LOAD_THREADS = 8  # enough for one drive at full speed, and for the latency of a volume on the network


GONE_SPEEDUPS = frozenset({"qkv", "channels_last"})  # endpoints that were set up when there were these still start


class Fallback(StrEnum):
    """What happens when a model cannot be loaded."""

    ALLOW = "allow"  # answer with a PIL stand-in that says so
    FORBID = "forbid"  # fail the job with model_unavailable
    FORCE = "force"  # never load: the rollback plan


class ServerMode(StrEnum):
    RUNPOD = "runpod"  # take jobs from the platform's queue
    LOCAL = "local"  # serve the SDK's local HTTP API


class Precision(StrEnum):
    """Of the transformer's matrices; the layers that suffer from it stay in bfloat16."""

    AUTO = "auto"  # on CUDA the most exact that fits, fp32 on CPU
    BF16 = "bf16"
    FP32 = "fp32"
    FP8 = "fp8"  # e4m3, a scale for each row; compute capability 8.9 and later
    INT8 = "int8"  # a scale for each row
    NF4 = "nf4"  # 4-bit normal floats


class Saving(StrEnum):
    """Ways of taking less memory that leave the pictures as they are."""

    TABLE = "table"  # modulation looked up by timestep, where the card is too small without
    SINGLE_FRAME = "single_frame"  # the VAE without the cache that only videos need
    CONV2D = "conv2d"  # the VAE's causal 3-D convolutions as 2-D ones: equal to about 1e-6
    TRIM = "trim"  # the text encoder without its language head, and without vision where nothing is edited


class Prepared(StrEnum):
    """Which prepared checkpoints are used, where they are otherwise right."""

    SAME_CARD = "same_card"  # what was computed in them was computed on a card like this one: equal to the last bit
    ANY_CARD = "any_card"
    OFF = "off"


class Speedup(StrEnum):
    """Ways of drawing faster that leave the pictures as they are, up to rounding."""

    COMPILE = "compile"  # the transformer's block by torch.compile
    ROTARY = "rotary"  # the rotary embedding without complex numbers, which no compiler fuses
    GUIDANCE = "guidance"  # guidance's two passes in one call where the picture is small
    ATTENTION = "attention"  # attention by cuDNN on the cards where it is the fastest


class Role(StrEnum):
    """What a model is for; background_replacement is an edit."""

    GENERATE = "generate"
    EDIT = "edit"

    @classmethod
    def of(cls, task: str) -> "Role":
        return cls.GENERATE if task == "generate" else cls.EDIT


class Delivery(StrEnum):
    """How a job's pictures leave."""

    AUTO = "auto"  # in the reply; where that is too large, by URL from a bucket if there is one
    INLINE = "inline"  # in the reply or not at all
    URL = "url"  # by URL from a bucket


class Misconfigured(Exception):
    """What of the environment cannot be used, by the variable's name."""


def hub_home() -> Path:
    """Where the hub's client and what is like it keep things, `HF_HOME`."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def read_settings() -> "Settings":
    """The environment's settings. Raises `Misconfigured`."""
    try:
        return Settings()
    except ValidationError as error:
        raise Misconfigured("; ".join(map(told, error.errors()))) from None


def warnings_about(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each QWEN_ name of the environment that is no setting, and for each value that is gone."""
    known = list(Settings.model_fields)
    found = []
    for name in sorted(name for name in environment if name.startswith("QWEN_") and name not in known):
        like = difflib.get_close_matches(name, known, 1)
        found.append(f"{name} is no setting of this worker" + (f"; {like[0]} is" if like else ""))
    gone = {part.strip() for part in environment.get("QWEN_SPEEDUPS", "").split(",")} & GONE_SPEEDUPS
    return found + [f"QWEN_SPEEDUPS names {name}, which this worker does not have any more" for name in sorted(gone)]


def told(problem: dict) -> str:
    """What pydantic found, in a line; without the value where that may be or hold a URL with credentials."""
    place, value = ".".join(map(str, problem["loc"])), problem["input"]
    hidden = place.partition(".")[0].endswith(("_LORA", "_LORAS")) and not isinstance(value, int | float)
    rule = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {rule}" + ("" if hidden else f", not {value!r}")


class Settings(PresetSettings):
    """Every field is the environment variable of the same name; an empty one counts as absent."""

    model_config = SettingsConfigDict(
        case_sensitive=True, frozen=True, env_ignore_empty=True, extra="ignore", allow_inf_nan=False
    )

    QWEN_IMAGE_MODEL: str = Field(
        "Qwen/Qwen-Image", description="The checkpoint for text to image: a hub id, id@revision, or a folder."
    )
    QWEN_EDIT_MODEL: str = Field(
        "Qwen/Qwen-Image-Edit", description="The checkpoint for edits: a hub id, id@revision, or a folder."
    )
    QWEN_FALLBACK: Fallback = Field(
        Fallback.ALLOW,
        description=(
            "What a job gets when its model cannot be loaded. allow: a stand-in picture that says so. forbid: the "
            "error model_unavailable. force: no model is loaded, and every job gets a stand-in."
        ),
    )
    QWEN_PRECISION: Precision = Field(
        Precision.AUTO,
        description=(
            "The precision of the transformer's matrices. auto: on a GPU the most exact one that fits, on a CPU fp32. "
            "bf16 and fp32 are exact; fp8 (compute capability 8.9 or later), int8 and nf4 change the pictures a "
            "little."
        ),
    )
    QWEN_SAVINGS: Annotated[frozenset[Saving], NoDecode] = Field(
        frozenset(Saving),
        description=(
            "The exact savings of memory that may be used: a comma-separated list of table, single_frame, conv2d and "
            "trim, or none."
        ),
    )
    QWEN_SPEEDUPS: Annotated[frozenset[Speedup] | None, NoDecode] = Field(
        None,
        description=(
            "The ways of drawing faster that may be used: auto, none, or a comma-separated list of compile, rotary, "
            "guidance and attention. auto: on a GPU all four, on a CPU none."
        ),
    )
    QWEN_COMPILED_FOLDER: Path | None = Field(
        None,
        description=(
            "The folder in which compiled blocks are kept from one start to the next. Without it: qwen-image-compiled "
            "below HF_HOME."
        ),
    )
    QWEN_COMPILED_MB: float = Field(
        500, ge=0, description="The most disk that compiled blocks may take, in MB. 0 keeps none."
    )
    QWEN_VRAM_GB: float | None = Field(
        None,
        gt=0,
        description="The most GPU memory that the worker may use, in GB (1e9 bytes). Without it: all of the card's.",
    )
    QWEN_MODEL_ROOTS: Annotated[tuple[Path, ...], NoDecode] = Field(
        tuple(Path(root) for root in MODEL_ROOTS),
        description="The folders in which weights may lie, separated by colons, in the order of the search.",
    )
    QWEN_LOAD_THREADS: int = Field(
        LOAD_THREADS,
        ge=0,
        le=64,
        description=(
            "The number of threads that read weights. 0 leaves reading to diffusers and transformers, and uses no "
            "prepared checkpoint."
        ),
    )
    QWEN_PREPARED: Prepared = Field(
        Prepared.SAME_CARD,
        description=(
            "The prepared checkpoints that may be used. same_card: those that were computed on a card like the "
            "worker's. any_card: also those of other cards, which may round differently. off: none."
        ),
    )
    QWEN_PRELOAD: Annotated[frozenset[Role], NoDecode] = Field(
        frozenset(),
        description="The models that are loaded before the first job is taken: generate, edit, or generate,edit.",
    )
    QWEN_LOAD_RETRY_SECONDS: float = Field(
        60,
        ge=0,
        description="The pause before a load is tried again that failed for a reason which may pass, in seconds.",
    )
    QWEN_FETCH_SECONDS: float = Field(
        20, gt=0, description="How long fetching one input image from its URL may take, in seconds."
    )
    QWEN_JOB_SECONDS: float | None = Field(
        None,
        gt=0,
        description=(
            "How long a job may take whose policy.executionTimeout does not say, in seconds. Without it: as long as it "
            "needs."
        ),
    )
    QWEN_SHUTDOWN_SECONDS: float = Field(
        25, ge=0, description="How long running jobs may go on after SIGTERM before they are ended, in seconds."
    )
    # Longer than the 600 seconds that the SDK waits for an answer when it posts a result.
    QWEN_STUCK_SECONDS: float = Field(
        900,
        gt=0,
        description="How many seconds a job may hold its slot after its end or its stop before the worker ends.",
    )
    QWEN_CONCURRENCY: int = Field(
        1,
        ge=1,
        le=4,
        description=(
            "How many jobs the worker holds at once, times QWEN_BATCH. Above 1, the next job's pictures are fetched "
            "while one is drawn; drawing stays one call at a time."
        ),
    )
    QWEN_BATCH: int = Field(
        1,
        ge=1,
        le=8,
        description="How many small pictures may share one call of the pipeline. 1: each has a call of its own.",
    )
    QWEN_PROGRESS_SECONDS: float = Field(
        1, ge=0, description="The least time between two progress messages of a job, in seconds. 0 sends none."
    )
    STREAM: bool = Field(
        False, description="Whether a job is answered with a list that can be streamed: its progress, then its reply."
    )
    QWEN_PROMPT_CACHE_MB: float = Field(
        256, ge=0, description="The most RAM that text encodings may take to be used again, in MB. 0 keeps none."
    )
    # Posted results above the platform's 10 MB are dropped without a word; the margin covers its envelope.
    QWEN_RESULT_LIMIT_MB: float = Field(
        9.5,
        gt=0,
        description="The largest reply that is sent, in MB (1e6 bytes of JSON). RunPod drops replies above 10 MB.",
    )
    QWEN_DELIVERY: Delivery = Field(
        Delivery.AUTO,
        description=(
            "How pictures leave where a job does not say. auto: in the reply, or by URL where they do not fit. inline: "
            "in the reply. url: by URL from the bucket."
        ),
    )
    QWEN_UPLOAD_SECONDS: float = Field(
        60, gt=0, description="How long uploading one job's pictures may take, in seconds."
    )
    BUCKET_ENDPOINT_URL: str | None = Field(
        None,
        description="The address of the bucket's S3 service, which may name the bucket in its host or as its path.",
    )
    BUCKET_ACCESS_KEY_ID: SecretStr | None = Field(None, description="The bucket's access key.")
    BUCKET_SECRET_ACCESS_KEY: SecretStr | None = Field(None, description="The bucket's secret key.")
    BUCKET_NAME: str | None = Field(None, description="The bucket's name. Without it: the one in BUCKET_ENDPOINT_URL.")
    BUCKET_REGION: str | None = Field(
        None,
        description=(
            "The region that requests are signed for. Without it: the one in the address of Amazon's S3, auto for R2, "
            "us-east-1 elsewhere."
        ),
    )
    BUCKET_PREFIX: str = Field("", description="The beginning of every picture's key.")
    BUCKET_KEY: str = Field(
        "{job_id}/{index}.{extension}",
        description="The rest of a picture's key. {job_id} and {index} must be in it; {extension} and {task} may be.",
    )
    BUCKET_PUBLIC_URL: str | None = Field(
        None,
        pattern=r"^https?://",
        description="The bucket's public address. Replies then name it and the key, in place of a presigned URL.",
    )
    BUCKET_URL_SECONDS: int = Field(
        604_800, ge=1, le=604_800, description="How long a presigned URL is good for, in seconds."
    )
    QWEN_WORKER_VERSION: str = Field(
        __version__, description="The version of the image, which replies and health repeat."
    )
    SERVER_MODE: ServerMode = Field(
        ServerMode.RUNPOD,
        description="Where jobs come from. runpod: the platform's queue. local: the SDK's HTTP API on port 8000.",
    )

    @field_validator("BUCKET_KEY")
    @classmethod
    def one_key_a_picture(cls, value: str) -> str:
        """Two pictures never share a key, and a key is safe in any URL."""
        plain = re.sub(r"\{(job_id|index|extension|task)\}", "", value)
        if "{job_id}" not in value or "{index}" not in value or not re.fullmatch(r"[A-Za-z0-9_./-]*", plain):
            raise ValueError(
                "must hold {job_id} and {index}, perhaps {extension} and {task}, else letters, digits, ._-/"
            )
        return value

    @field_validator("QWEN_SAVINGS", "QWEN_PRELOAD", mode="before")
    @classmethod
    def split_list(cls, value):
        """A comma-separated list; `none` for the empty one, since an empty variable counts as absent."""
        if not isinstance(value, str):
            return value
        return frozenset(part.strip() for part in value.split(",") if part.strip() not in ("", "none"))

    @field_validator("QWEN_SPEEDUPS", mode="before")
    @classmethod
    def split_speedups(cls, value):
        found = None if value == "auto" else cls.split_list(value)
        return found and found - GONE_SPEEDUPS

    @field_validator("QWEN_MODEL_ROOTS", mode="before")
    @classmethod
    def split_roots(cls, value):
        """A colon-separated list, as in PATH."""
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value
