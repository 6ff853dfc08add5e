"""A ControlNet as diffusers stores it: where its files lie, how large it is, and which transformers it belongs to.

A ControlNet adds to the image states of a transformer, and shares their width, heads and inputs with it. Reads names,
configs and safetensors headers, never weights. Knows nothing of torch, nor of what is controlled.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import LoadError
from ..memory.machine import free_disk_bytes
from ..memory.placement import require_disk
from ..network.hub import hub_cache_folder, listing
from .checkpoint import Checkpoint
from .files import DIFFUSERS_STEM, Json, is_folder, label_of, read_json, stored_tensors
from .remote import download_files, read_remote
from .search import hub_folders

CLASS_NAME = "QwenImageControlNetModel"
PIPELINE = "QwenImagePipeline"  # of the checkpoints that diffusers has a ControlNet pipeline for
CONFIG = "config.json"
READ_FILES = [CONFIG, f"{DIFFUSERS_STEM}*.safetensors", f"{DIFFUSERS_STEM}*.safetensors.index.json"]
# What both have in common, with diffusers' default, which is the 20B architecture's.
SHARED: Json = {
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "in_channels": 64,
    "patch_size": 2,
    "axes_dims_rope": [16, 56, 56],
}
WORDS = {
    "attention_head_dim": "channels a head",
    "num_attention_heads": "heads",
    "joint_attention_dim": "channels of text",
    "in_channels": "channels of latents",
    "patch_size": "latents a token's side",
    "axes_dims_rope": "as its rotary axes",
}


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet before it is loaded. `folder` is None as long as its files are not on this machine."""

    name: str  # as a caller may see it
    config: Json = field(hash=False, repr=False)
    parameters: int
    folder: Path | None = None
    revision: str | None = None

    @property
    def blocks(self) -> int:
        return self.config.get("num_layers", 60)

    @property
    def width(self) -> int:
        """Channels of a token's state."""
        heads, channels = (
            self.config.get(name, SHARED[name]) for name in ("num_attention_heads", "attention_head_dim")
        )
        return heads * channels

    def require_belongs(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint whose transformer is of another shape. Raises `LoadError` with both figures."""
        if checkpoint.class_name != PIPELINE:
            raise LoadError(f"{self.name} controls a {PIPELINE}, and {checkpoint.name} is a {checkpoint.class_name}")
        config = read_json(checkpoint.folder, "transformer/config.json") if checkpoint.folder else {}
        for name, default in SHARED.items():
            own, other = (one.get(name, default) for one in (self.config, config))
            if own != other:
                raise LoadError(
                    f"{self.name} has {own} {WORDS[name]} ({name}), and the transformer of {checkpoint.name} {other}: "
                    "it was trained for another model"
                )
        if self.blocks > (blocks := config.get("num_layers", 60)):
            raise LoadError(f"{self.name} has {self.blocks} blocks, and the transformer of {checkpoint.name} {blocks}")


def is_planned(model: str | None, checkpoints: Iterable[Checkpoint]) -> bool:
    """Whether room is left for the ControlNet of the settings beside these: one of them could be followed by it."""
    return model is not None and any(checkpoint.class_name == PIPELINE for checkpoint in checkpoints)


def find(model: str, roots: Iterable[Path]) -> ControlNet:
    """The ControlNet of a folder or a hub id: on this machine, else as the hub describes it. Downloads no weights.

    Raises `LoadError` where there is none, or none that the worker draws with.
    """
    if is_folder(model):
        return inspect(Path(model).expanduser(), label_of(model), None)
    hub_id, _, revision = model.partition("@")
    for folder, commit in hub_folders(model, roots):
        if is_whole(folder):
            return inspect(folder, hub_id, commit)
    commit, sizes = listing(hub_id, revision)
    if CONFIG not in sizes:
        raise LoadError(f"{hub_id} is on the hub and holds no {CONFIG}: it is no ControlNet of diffusers")
    config = require_controlnet(read_remote(hub_id, CONFIG, commit), hub_id)
    weight_bytes = sum(size for name, size in sizes.items() if fnmatchcase(name, READ_FILES[1]))
    if not weight_bytes:
        raise LoadError(f"{hub_id} is on the hub and holds no {DIFFUSERS_STEM}.safetensors")
    return ControlNet(hub_id, config, weight_bytes // 2, revision=commit)  # the published ones are bfloat16


def fetch(controlnet: ControlNet) -> ControlNet:
    """The same with its files on this machine. Raises `LoadError`, as where the disk is too small."""
    if controlnet.folder:
        return controlnet
    require_disk(controlnet.name, controlnet.parameters * 2, free_disk_bytes(hub_cache_folder()))
    folder = download_files(controlnet.name, controlnet.revision, READ_FILES, ["*/*"])
    return inspect(folder, controlnet.name, controlnet.revision)


def inspect(folder: Path, name: str, revision: str | None) -> ControlNet:
    """What a folder holds. Raises `LoadError` naming what is missing, damaged or of another kind."""
    config = require_controlnet(read_json(folder, CONFIG), name)
    tensors = stored_tensors(folder.parent, folder.name).values()
    return ControlNet(name, config, sum(math.prod(tensor.shape) for tensor in tensors), folder, revision)


def require_controlnet(config: Json, name: str) -> Json:
    """The config. Raises `LoadError` for that of another class, and of a ControlNet that takes more than a picture."""
    class_name = config.get("_class_name")
    if class_name != CLASS_NAME:
        raise LoadError(f"{name} is a {str(class_name)[:60]} and no {CLASS_NAME} of diffusers")
    if config.get("extra_condition_channels"):
        raise LoadError(
            f"{name} is a ControlNet for inpainting, which takes a mask; one that takes a picture is needed"
        )
    return config


def is_whole(folder: Path) -> bool:
    """Whether the config and all files of weights are there; a download that was cut short leaves some out."""
    try:
        inspect(folder, "", None)
    except LoadError:
        return False
    return True
