"""A Qwen-Image checkpoint before it is loaded: where it lies, what it is, how large, and whether its files are whole.

Reads names, configs and safetensors headers, never weights. Knows nothing of torch and diffusers, and opens no socket.
"""

import hashlib
import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..errors import LoadError
from ..jobs.defaults import Defaults
from ..jobs.named_sizes import Grid
from ..jobs.request import Drawing
from ..jobs.served import Limits, require_served
from ..network.hub import is_same_repository
from .classes import (
    COUNTED,
    NEEDED_FILES,
    PART_PATTERNS,
    PIPELINE_CLASSES,
    RELEASED,
    WEIGHTS,
    PipelineClass,
    require_class,
    size_multiple_of,
)
from .files import (
    describe_contents,
    label_of,
    limits_of,
    names_below,
    read_json,
    shards,
    stored_tensors,
)
from .makers import defaults_of, licence_of, read_schedule
from .stored_parts import require_stored_so
from .stored_quantization import plain_tensors, stored_quantization


@dataclass(frozen=True)
class OtherTransformer:
    """A transformer that stands in the place of a checkpoint's own, as `health` tells of it."""

    label: str  # as a caller may see it: the hub's path, or a file's last two names
    kind: str  # how its weights are stored
    revision: str  # a commit, or a digest of its header
    size: int  # bytes of its weights, or of its file


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint. `folder` is None as long as its files are not on this machine."""

    name: str  # as a caller may see it: the hub id, or a folder's last two names
    class_name: str
    parameters: dict[str, int] = field(hash=False)
    size_multiple: int = 16  # what a side must be a multiple of, in pixels: twice the VAE's spatial compression
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None  # a commit, a branch, or a digest of a plain folder
    parts: dict[str, int] = field(default_factory=dict[str, int], hash=False)  # parameters; see PART_PATTERNS
    digests: dict[str, str] = field(default_factory=dict[str, str], hash=False)  # of components' content, if taken
    # Bytes of the weights that are stored quantized, by component and by part, of which `parameters` and `parts` count
    # only the others.
    packed: dict[str, int] = field(default_factory=dict[str, int], hash=False)
    warning: str | None = None  # for its replies, where it draws far less than Qwen's checkpoints
    stored_bytes: int = 0  # of its weight files on the hub; 0 where no listing says it
    schedule: tuple[float, ...] = ()  # the sigmas that its files fix (`makers.read_schedule`)
    transformer: OtherTransformer | None = None  # None for its own

    @property
    def pipeline_class(self) -> PipelineClass:
        return PIPELINE_CLASSES[self.class_name]

    @property
    def adaptable(self) -> bool:
        return self.pipeline_class.adaptable

    @property
    def defaults(self) -> Defaults:
        """Of jobs that do not say."""
        transformer = self.transformer and self.transformer.label
        return defaults_of(self.class_name, self.hub_id or self.name, self.schedule, transformer)

    def report(self) -> dict[str, Any]:
        """What `health` tells of it, whether it is loaded or not. `licence`: None where it is not known."""
        return {
            "model": self.name,
            "class": self.class_name,
            "licence": licence_of(self.class_name, self.hub_id or self.name),
            "most_images": self.pipeline_class.max_images,
            "sizes": self.grid.table,
            "defaults": self.defaults.report(),
        }

    def require_serves(self, request: Drawing) -> None:
        """Refuse what only the checkpoint can say: sizes and numbers of pictures. Raises `InvalidInput`."""
        own = self.pipeline_class
        limits = Limits(self.size_multiple, own.max_side, own.max_images, own.draws_alpha, own.follows_size)
        require_served(request, limits)

    @property
    def grid(self) -> Grid:
        """What it says of sizes. Where the VAE is of another kind than the released ones', no table is known."""
        is_released_kind = self.size_multiple == size_multiple_of(self.class_name)
        own = self.pipeline_class
        table = own.size_table if is_released_kind else None
        return Grid(self.size_multiple, table, own.max_side, own.follows_size, own.draws_alpha)

    @property
    def local_folder(self) -> Path:
        """The folder of its files. Raises `LoadError` where they are not on this machine."""
        if self.folder is None:
            raise LoadError(f"the files of {self.name} are not on this machine")
        return self.folder


def released(model: str) -> Checkpoint | None:
    """The checkpoint by its hub id alone, from the table of released ones; None where it is not among them."""
    written, _, revision = model.partition("@")
    hub_id = next((hub_id for hub_id in RELEASED if is_same_repository(hub_id, written)), None)
    if hub_id is None:
        return None
    class_name, parameters = RELEASED[hub_id]
    multiple = size_multiple_of(class_name)
    parts = next(parts for size, parts in COUNTED if size is parameters)
    return Checkpoint(hub_id, class_name, parameters, multiple, None, hub_id, revision or None, parts)


def inspect(folder: Path, without: Collection[str] = ()) -> Checkpoint:
    """What the folder holds, from its configs and headers, of the components but those `without`.

    Raises `LoadError` naming the file or the class.
    """
    name = label_of(str(folder))
    if os.path.isfile(folder):
        raise LoadError(f"{name} is a file and no folder: {describe_contents([folder.name])}")
    if not os.path.isdir(folder):
        raise LoadError(f"{name} is not a folder on this worker")
    if (folder / "prepared.json").is_file():
        raise LoadError(f"{name} is a prepared checkpoint: name the model that it was made of, which will find it")
    if not (folder / "model_index.json").is_file():
        raise LoadError(f"{name} holds no model_index.json: {describe_contents(names_below(folder))}")
    index = read_json(folder, "model_index.json")
    class_name = require_class(name, index.get("_class_name"))
    require_files(folder, class_name, without)
    if read_json(folder, "transformer/config.json").get("guidance_embeds"):
        raise LoadError(f"{name} is guidance-distilled (guidance_embeds), which diffusers' {class_name} cannot run")
    shapes, packed = plain_shapes(folder, without)
    parameters = {component: sum(map(math.prod, shapes[component].values())) for component in WEIGHTS}
    multiple = size_multiple_of(class_name, read_json(folder, "vae/config.json"))
    parts = count_parts(shapes, only_text_encoder=not savings_apply(folder, class_name))
    checkpoint = Checkpoint(name, class_name, parameters, multiple, folder, parts=parts, packed=packed)
    schedule = read_schedule(class_name, index)
    return replace(checkpoint, revision=folder_digest(folder), warning=limits_of(index), schedule=schedule)


def plain_shapes(
    folder: Path, without: Collection[str] = ()
) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, int]]:
    """By component the shapes of tensors by name, and as `Checkpoint.packed` the bytes of those left out as quantized.

    Raises `LoadError`, also for a component that is quantized in a way that is not loaded here, or not as it says.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    packed: dict[str, int] = {}
    for component in WEIGHTS:
        if component in without:
            shapes[component] = {}
            continue
        tensors = stored_tensors(folder, component)
        plain, stored = list(tensors.values()), stored_quantization(folder, component)
        require_stored_so(component, stored, tensors)
        if stored:
            plain = plain_tensors(plain)
            kept = {tensor.name for tensor in plain}
            rest = [tensor for name, tensor in tensors.items() if name not in kept]
            packed[component] = sum(tensor.size for tensor in rest)
            for part in ("lm_head", "vision"):
                owner, pattern = PART_PATTERNS[part]
                if owner == component:
                    packed[part] = sum(tensor.size for tensor in rest if re.search(pattern, tensor.name))
        shapes[component] = {tensor.name: tensor.shape for tensor in plain}
    return shapes, packed


def savings_apply(folder: Path, class_name: str) -> bool:
    """Whether the savings know the architecture: 2.1 has another.

    A layered model's modulation has a second input, which its pipeline always gives one value: the table counts with
    that one. Another class that has the input may give others.
    """
    config = read_json(folder, "transformer/config.json")
    has_second_input = config.get("use_additional_t_cond") and class_name != "QwenImageLayeredPipeline"
    return class_name != "QwenImage21Pipeline" and not has_second_input


def count_parts(shapes: dict[str, dict[str, tuple[int, ...]]], only_text_encoder: bool = False) -> dict[str, int]:
    """Parameters by part, from the shapes of each component's tensors by name.

    `temporal` is what single frames never touch of the VAE: of a causal 3-D kernel all slices in time but the last,
    and the convolutions between frames.
    """
    parts = {
        part: sum(math.prod(shape) for name, shape in shapes[component].items() if re.search(pattern, name))
        for part, (component, pattern) in PART_PATTERNS.items()
        if component == "text_encoder" or not only_text_encoder
    }
    if only_text_encoder:
        return parts
    parts["temporal"] = sum(
        math.prod(shape) if ".time_conv." in name else math.prod(shape) - math.prod(shape) // shape[2]
        for name, shape in shapes["vae"].items()
        if len(shape) == 5 or ".time_conv." in name
    )
    return parts


def require_files(folder: Path, class_name: str, without: Collection[str] = ()) -> None:
    """Refuse a folder that lacks what the class loads: libraries make do with less, and draw nonsense or fail late.

    `without`: components of which it may lack the weights.
    """
    index = read_json(folder, "model_index.json")
    for component in (*WEIGHTS, *PIPELINE_CLASSES[class_name].components):
        entry: Any = index.get(component)
        parts = cast("list[Any]", entry) if isinstance(entry, list) else []
        if not (len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise LoadError(f"model_index.json names no library and class for {component}")
    for component in WEIGHTS:
        read_json(folder, f"{component}/config.json")
        if component not in without:
            shards(folder, component)
    for component in PIPELINE_CLASSES[class_name].components:
        choices = NEEDED_FILES[component]
        if not any(all((folder / component / name).is_file() for name in names) for names in choices):
            needed = " or ".join(" and ".join(names) for names in choices)
            raise LoadError(f"{label_of(str(folder))} holds no {needed} in {component}/")


def is_complete(folder: Path, without: Collection[str] = ()) -> bool:
    """Whether every file is there that a load will read, but for the weights of components `without`.

    An interrupted download leaves some out.
    """
    try:
        class_name = read_json(folder, "model_index.json").get("_class_name")
        # The checkpoint of another class is not incomplete: `inspect` refuses it by its class.
        if isinstance(class_name, str) and class_name in PIPELINE_CLASSES:
            require_files(folder, class_name, without)
        return True
    except LoadError:
        return False


def folder_digest(folder: Path) -> str:
    """The revision of a plain folder, which has no commit: of its configs, and its weight files' headers and sizes."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".json", ".safetensors", ".txt") or not file.is_file():
            continue
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
    return f"folder-{digest.hexdigest()[:12]}"
