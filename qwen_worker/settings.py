"""The environment, read once, typed. Knows nothing of what the settings cause.

Only what the worker itself decides by is here; `HF_HOME`, `HF_TOKEN` and `TORCH_HOME` are read by their libraries, the
`RUNPOD_*` variables by the SDK.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from . import __version__

# Where weights may already lie, in the order they are looked for: the platform's cached models, the image, a volume.
MODEL_ROOTS = ("/runpod-volume/huggingface-cache/hub", "/opt/qwen-image/models", "/runpod-volume/models")


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


class Settings(BaseSettings):
    """Every field is the environment variable of the same name; an empty one counts as absent."""

    model_config = SettingsConfigDict(
        case_sensitive=True, frozen=True, env_ignore_empty=True, extra="ignore", allow_inf_nan=False
    )

    QWEN_IMAGE_MODEL: str = Field("Qwen/Qwen-Image", description="text-to-image: hub id, id@revision, or a folder")
    QWEN_EDIT_MODEL: str = Field("Qwen/Qwen-Image-Edit", description="editing: hub id, id@revision, or a folder")
    QWEN_FALLBACK: Fallback = Field(Fallback.ALLOW, description="when a model cannot load: allow, forbid or force PIL")
    QWEN_PRECISION: Precision = Field(Precision.AUTO, description="auto, bf16, fp8, int8, nf4 or fp32")
    QWEN_SAVINGS: Annotated[frozenset[Saving], NoDecode] = Field(
        frozenset(Saving),
        description="exact savings that may be used: table, single_frame, conv2d, trim, comma-separated; or none",
    )
    QWEN_VRAM_GB: float | None = Field(None, gt=0, description="cap on the GPU memory that may be used, in GB (1e9)")
    QWEN_MODEL_ROOTS: Annotated[tuple[Path, ...], NoDecode] = Field(
        tuple(Path(root) for root in MODEL_ROOTS),
        description="folders of checkpoints, colon-separated, in search order",
    )
    QWEN_LOAD_RETRY_SECONDS: float = Field(
        60, ge=0, description="pause before a load that failed in passing is retried"
    )
    QWEN_FETCH_SECONDS: float = Field(20, gt=0, description="deadline for fetching one input image by URL")
    # Posted results above the platform's 10 MB are dropped without a word; the margin covers its envelope.
    QWEN_RESULT_LIMIT_MB: float = Field(9.5, gt=0, description="largest reply that is sent, in MB (1e6 bytes of JSON)")
    QWEN_WORKER_VERSION: str = Field(__version__, description="the image build, echoed in replies and health")
    SERVER_MODE: ServerMode = Field(ServerMode.RUNPOD, description="runpod or local")

    @field_validator("QWEN_SAVINGS", mode="before")
    @classmethod
    def split_savings(cls, value):
        """A comma-separated list; `none` for the empty one, since an empty variable counts as absent."""
        if not isinstance(value, str):
            return value
        return frozenset(part.strip() for part in value.split(",") if part.strip() not in ("", "none"))

    @field_validator("QWEN_MODEL_ROOTS", mode="before")
    @classmethod
    def split_roots(cls, value):
        """A colon-separated list, as in PATH."""
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value
