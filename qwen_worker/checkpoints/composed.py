"""A checkpoint with a transformer from elsewhere: the base's folder in links, with that transformer in its place.

What reads a checkpoint finds a folder of diffusers' layout, in which `transformer/single_file.json` names the file that
stands for the component. The base needs no weights of its own transformer, and none are fetched. Reads configs and
headers. Knows nothing of how weights are decoded.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import LoadError
from ..network.hub import READ_FILES
from . import remote, single_file
from .architecture import Shapes, require_weights
from .checkpoint import Checkpoint, OtherTransformer, inspect, released
from .classes import PART_PATTERNS
from .files import SINGLE_FILE, Json, read_json, stored_tensors
from .search import find_folder
from .stored_parts import require_stored_so
from .stored_quantization import plain_tensors, quantization_of
from .transformer_source import COMPONENT, CONFIG, TransformerSource

# Of a folder's own config those fields that what comes from the base depends on.
SHARED_FIELDS = ("_class_name", "in_channels", "out_channels", "patch_size", "joint_attention_dim", "context_in_dim")
STORED_PLAIN = "a folder of diffusers"  # the kind of one that is not quantized


@dataclass(frozen=True)
class StoredTransformer:
    """What a plan is made of. `packed_bytes`: of what is stored quantized and loaded so, None where nothing is.

    `parameters`: of the rest, by `parts` too where shapes are known. `config`: of the loaded transformer.
    """

    kind: str
    parameters: int
    config: Json
    parts: dict[str, int] = field(default_factory=dict[str, int])
    packed_bytes: int | None = None


def attach(model: str, source: TransformerSource, roots: Iterable[Path], scratch: Path) -> Checkpoint:
    """The checkpoint `model` with the source's transformer; its folder is None as long as not all of it is here.

    `scratch`: a folder for links, which the checkpoint's files are read through. Raises `LoadError` for a transformer
    that is not one of the base's architecture, naming a tensor.
    """
    found = find_folder(model, roots, without=(COMPONENT,))
    if found:
        folder, hub_id, commit = found
        base = inspect(folder, without=(COMPONENT,))
        base = replace(base, name=hub_id or base.name, hub_id=hub_id, revision=commit or base.revision)
        config = read_json(folder, f"{COMPONENT}/{CONFIG}")
    else:
        base = released(model) or remote.look_up(model, without=(COMPONENT,))
        config = remote.read_remote(base.name, f"{COMPONENT}/{CONFIG}", base.revision or "main")
    stored = read_stored(source, config)
    checkpoint = with_transformer(base, stored, source)
    if not found or source.path is None:
        return replace(checkpoint, folder=None)
    return replace(checkpoint, folder=compose(found[0], source.path, stored.config, scratch))


def download(checkpoint: Checkpoint, model: str, roots: Iterable[Path]) -> None:
    """Have the base of a hub's checkpoint on this machine, without the weights of its own transformer. `LoadError`."""
    if not is_base_here(model, roots):
        left_out = ["*/*/*", f"{COMPONENT}/*.safetensors*"]
        remote.download_files(checkpoint.name, model.partition("@")[2] or None, READ_FILES, left_out)


def is_base_here(model: str, roots: Iterable[Path]) -> bool:
    """Whether the base is on this machine, but for the weights of its transformer. Raises `LoadError`."""
    return find_folder(model, roots, without=(COMPONENT,)) is not None


def read_stored(source: TransformerSource, base_config: Json) -> StoredTransformer:
    """What the source holds. `base_config`: of the base's own transformer. Raises `LoadError`."""
    if source.place.is_file:
        found = single_file.read(source.readable, source.name)
        config = {key: value for key, value in base_config.items() if key != "quantization_config"} | found.config
        shapes = {name: weight.shape for name, weight in found.weights.items()}
        require_weights(shapes, config, source.name)
        return StoredTransformer(found.kind, count(shapes), config, parts_of(shapes))
    config = read_json(source.readable, CONFIG)
    require_same_inputs(config, base_config, source.label)
    quantization = quantization_of(config, COMPONENT)
    if source.path is None:  # all that is known of it are its config and its size
        if quantization:
            return StoredTransformer(str(quantization), 0, config, packed_bytes=source.size)
        return StoredTransformer(STORED_PLAIN, source.size // 2, config)
    tensors = stored_tensors(source.path.parent, source.path.name)
    require_stored_so(COMPONENT, quantization, tensors)
    plain = plain_tensors(tensors.values()) if quantization else list(tensors.values())
    shapes = {tensor.name: tensor.shape for tensor in plain}
    if not quantization:
        require_weights(shapes, config, source.label)
        return StoredTransformer(STORED_PLAIN, count(shapes), config, parts_of(shapes))
    packed_bytes = sum(tensor.size for tensor in tensors.values()) - sum(tensor.size for tensor in plain)
    return StoredTransformer(str(quantization), count(shapes), config, parts_of(shapes), packed_bytes)


def require_same_inputs(config: Json, base_config: Json, label: str) -> None:
    """Refuse a folder's transformer that takes or gives other things than the base's. Raises `LoadError`."""
    for name in SHARED_FIELDS:
        have, need = (str(each.get(name))[:60] for each in (config, base_config))
        if have != need:
            raise LoadError(f"{label} has {name} {have} in its {CONFIG}, where the base checkpoint's has {need}")


def with_transformer(base: Checkpoint, stored: StoredTransformer, source: TransformerSource) -> Checkpoint:
    """The base as a plan sees it with that transformer. Its parts are counted where the savings know those of the base:
    a transformer that has other parts, as that of 2.1, would count as one of the 20B architecture.
    """
    counts_parts = any(component == COMPONENT and part in base.parts for part, (component, _) in PART_PATTERNS.items())
    packed = {name: size for name, size in base.packed.items() if name != COMPONENT}
    if stored.packed_bytes is not None:
        packed[COMPONENT] = stored.packed_bytes
    return replace(
        base,
        revision="+".join(filter(None, [base.revision, source.revision[:17]])),
        parameters=base.parameters | {COMPONENT: stored.parameters},
        parts=base.parts | (stored.parts if counts_parts else {}),
        packed=packed,
        transformer=OtherTransformer(source.label, stored.kind, source.revision, source.size),
    )


def count(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def parts_of(shapes: Shapes) -> dict[str, int]:
    """Parameters of the transformer by part."""
    patterns = {part: pattern for part, (component, pattern) in PART_PATTERNS.items() if component == COMPONENT}
    return {
        part: count({name: shape for name, shape in shapes.items() if re.search(pattern, name)})
        for part, pattern in patterns.items()
    }


def compose(base: Path, transformer: Path, config: Json, scratch: Path) -> Path:
    """The folder of the checkpoint. `transformer`: a file, or a folder of diffusers' layout."""
    key = hashlib.sha256(f"{base.resolve()}\0{transformer.absolute()}".encode()).hexdigest()[:16]
    folder = scratch / key / base.name
    place = folder / COMPONENT
    place.mkdir(parents=True, exist_ok=True)
    for entry in base.iterdir():
        if entry.name != COMPONENT:
            link(entry, folder / entry.name)
    if transformer.is_dir():
        for entry in transformer.iterdir():
            link(entry, place / entry.name)
        return folder
    link(transformer, place / transformer.name)
    (place / CONFIG).write_text(json.dumps(config, indent=1))
    (place / SINGLE_FILE).write_text(json.dumps({"file": transformer.name}))
    return folder


def link(entry: Path, target: Path) -> None:
    """A link to a file or folder, as it is now."""
    target.unlink(missing_ok=True)
    target.symlink_to(entry.absolute())
