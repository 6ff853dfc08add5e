"""The pipeline classes that are served, what each needs and serves, and the released checkpoints by hub id.

Tables, and what follows from a class alone. Knows nothing of any folder, of torch and diffusers.
"""

from dataclasses import dataclass
from typing import Any, cast

from ..errors import LoadError
from .files import Json

WEIGHTS = ("transformer", "text_encoder", "vae")  # components that hold parameters


@dataclass(frozen=True)
class PipelineClass:
    """What a pipeline class of diffusers serves."""

    tasks: frozenset[str]
    max_images: int  # input images of one edit
    components: tuple[str, ...]  # beside those that hold parameters
    adaptable: bool = True  # its transformer is the 20B one's, which LoRAs, few-step presets and the step cache know
    size_table: str = "1K"  # of `jobs/named_sizes.py`: the sizes that the released checkpoints' makers recommend


# Any one of these sets of files makes a component complete that holds no parameters.
NEEDED_FILES = {
    "scheduler": (("scheduler_config.json",),),
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "processor": (("preprocessor_config.json",), ("processor_config.json",)),
}
EDITS = frozenset({"edit", "background_replacement"})
PIPELINE_CLASSES = {
    "QwenImagePipeline": PipelineClass(frozenset({"generate"}), 0, ("scheduler", "tokenizer")),
    "QwenImageEditPipeline": PipelineClass(EDITS, 1, ("scheduler", "tokenizer", "processor")),
    "QwenImageEditPlusPipeline": PipelineClass(EDITS, 3, ("scheduler", "tokenizer", "processor")),
    "QwenImage21Pipeline": PipelineClass(EDITS | {"generate"}, 3, ("scheduler", "processor"), False, "2K"),
}
# The parts of a component that the exact savings and quantization act on: (component, pattern of the weights' names).
PART_PATTERNS = {
    "modulation": ("transformer", r"^transformer_blocks\.\d+\.(img|txt)_mod\."),
    "modulation_outputs": ("transformer", r"^transformer_blocks\.\d+\.(img|txt)_mod\..*\.bias$"),
    "matrices": ("transformer", r"^transformer_blocks\.\d+\.(attn\.(to|add)_|(img|txt)_mlp\.).*\.weight$"),
    "lm_head": ("text_encoder", r"^lm_head\."),
    "vision": ("text_encoder", r"^(model\.)?visual\."),
    "embedding": ("text_encoder", r"embed_tokens\."),
}
# Parameters by component, counted on the installed classes with the released configurations.
SIZE_20B = {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531}
SIZE_2_1 = {"transformer": 7_115_124_736, "text_encoder": 8_767_123_696, "vae": 337_740_404}
PARTS_20B = {
    "modulation": 6_796_984_320, "modulation_outputs": 2_211_840, "matrices": 13_589_544_960,
    "lm_head": 544_997_376, "vision": 676_550_144, "embedding": 544_997_376, "temporal": 82_292_928,
}  # fmt: skip
# By hub id: the pipeline class, and the parameters by component.
RELEASED = {
    "Qwen/Qwen-Image": ("QwenImagePipeline", SIZE_20B),
    "Qwen/Qwen-Image-2512": ("QwenImagePipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit": ("QwenImageEditPipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit-2509": ("QwenImageEditPlusPipeline", SIZE_20B),
    "Qwen/Qwen-Image-Edit-2511": ("QwenImageEditPlusPipeline", SIZE_20B),
    "Qwen/Qwen-Image-2.1": ("QwenImage21Pipeline", SIZE_2_1),
    "Qwen/Qwen-Image-2.1-Turbo": ("QwenImage21Pipeline", SIZE_2_1),
}


def require_class(name: str, class_name: object) -> str:
    """The class that a model_index.json names. Raises `LoadError` for one that is not served."""
    if not isinstance(class_name, str) or class_name not in PIPELINE_CLASSES:
        raise LoadError(
            f"{name} names the pipeline class {str(class_name)[:80]}; served are {', '.join(PIPELINE_CLASSES)}"
        )
    return class_name


def size_multiple_of(class_name: str, vae_config: Json | None = None) -> int:
    """What a picture's sides must be multiples of, in pixels. Raises `LoadError` for a config that cannot be read."""
    if class_name == "QwenImage21Pipeline":
        return 32  # the pipeline fixes a compression of 16
    halvings: Any = (vae_config or {}).get("temperal_downsample", [False, True, True])
    if not isinstance(halvings, list):
        raise LoadError("vae/config.json is corrupt: temperal_downsample is not a list")
    return 2 * 2 ** len(cast("list[Any]", halvings))  # each entry halves the sides once more
