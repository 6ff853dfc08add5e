"""The settings of the endpoint's models: which they are, where they lie, and how they are loaded and computed.

The part of `settings.py` that only loading reads. Knows nothing of what a setting causes.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from .preset_settings import Folders

# Weights are looked for in this order: among the platform's cached models, in the image, on a network volume.
MODEL_ROOTS = ("/runpod-volume/huggingface-cache/hub", "/opt/qwen-image/models", "/runpod-volume/models")
LOAD_THREADS = 8  # this many readers keep one drive at full speed, and hide the latency of a network volume
# QWEN_SPEEDUPS may still name them, with a warning: endpoints that were set up for a former version go on starting.
REMOVED_SPEEDUPS = frozenset({"qkv", "channels_last"})


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


class Gpus(StrEnum):
    """How many cards one picture is drawn on."""

    ONE = "1"
    TWO = "2"
    AUTO = "auto"  # two, where the worker has two


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
    GELU = "gelu"  # the MLP's first product and its activation by one kernel


class Role(StrEnum):
    """Which of the endpoint's models is meant."""

    GENERATE = "generate"
    EDIT = "edit"
    LAYERS = "layers"  # only where QWEN_LAYERED_MODEL names one

    @classmethod
    def of(cls, task: str) -> "Role":
        """The role of the model that serves the task: every task but generate and layers is an edit."""
        return cls(task) if task in (cls.GENERATE, cls.LAYERS) else cls.EDIT


class ModelSettings(BaseSettings):
    QWEN_IMAGE_MODEL: str = Field(
        default="Qwen/Qwen-Image", description="The checkpoint for text to image: a hub id, id@revision, or a folder."
    )
    QWEN_EDIT_MODEL: str = Field(
        default="Qwen/Qwen-Image-Edit", description="The checkpoint for edits: a hub id, id@revision, or a folder."
    )
    QWEN_LAYERED_MODEL: str | None = Field(
        default=None,
        description=(
            "The checkpoint for task layers: a hub id, id@revision, or a folder. Without it the task is refused, and "
            "the endpoint has no third model."
        ),
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
    QWEN_CONTROLNET: str | None = Field(
        default=None,
        description=(
            "The ControlNet that control_image is followed by, in diffusers' layout, such as "
            "InstantX/Qwen-Image-ControlNet-Union: a hub id, id@revision, or a folder. It is loaded when a job first "
            "needs it. Without it: jobs with control fields are refused."
        ),
    )
    QWEN_TASKS: Annotated[frozenset[Role], NoDecode] = Field(
        default=frozenset(Role),
        min_length=1,
        description=(
            "What the endpoint serves: a comma-separated list of generate, edit (background_replacement too) and "
            "layers. Without it: all that have a model. Other jobs are refused, and the model for them is neither "
            "loaded nor given room."
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
            "guidance, attention and gelu. auto: on a GPU all five, on a CPU none."
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
    QWEN_GPUS: Gpus = Field(
        default=Gpus.ONE,
        description=(
            "How many cards of a worker draw one picture: 1, 2, or auto, which is 2 where the worker has a second "
            "card. With 2 each of guidance's two passes has a card of its own. Where the second card cannot be used, "
            "the first draws alone, and health says why."
        ),
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
        description=(
            "The models that are loaded before the first job is taken: a comma-separated list of generate, edit and "
            "layers."
        ),
    )
    QWEN_LOAD_RETRY_SECONDS: float = Field(
        default=60,
        ge=0,
        description="The pause before a load is tried again that failed for a reason which may pass, in seconds.",
    )

    @property
    def served_roles(self) -> frozenset[Role]:
        """What of QWEN_TASKS has a model: layers only where one is named."""
        return self.QWEN_TASKS if self.QWEN_LAYERED_MODEL else self.QWEN_TASKS - {Role.LAYERS}

    @model_validator(mode="after")
    def require_layered_model(self) -> Self:
        """Refuse an endpoint that is only to take pictures apart and names no model for it."""
        if not self.served_roles:
            raise ValueError("QWEN_TASKS names layers alone, for which QWEN_LAYERED_MODEL must name a model")
        return self

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
