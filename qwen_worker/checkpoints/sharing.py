"""Whether two checkpoints' components are the same by content, so that one copy in memory can serve both.

By content and not by name: two checkpoints of one family may differ in any component. Reads files, loads nothing.
"""

import filecmp
import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..memory.footprint import WORKING, WORKING_2_1, Model
from .checkpoint import Checkpoint
from .classes import WEIGHTS
from .files import INDEX_SUFFIX, PREPARED_STEM, SUFFIX, Json, read_json, shards, weights_stem

SHAREABLE = ("text_encoder", "vae", "tokenizer")  # each edit or fine-tune has a transformer of its own
# Written by the saving library and without effect on what is loaded.
PROVENANCE = {"_name_or_path", "_diffusers_version", "transformers_version"}


def shared_components(checkpoint: Checkpoint, other: Checkpoint) -> list[str]:
    """The components that two checkpoints have in common: by content, or by size where a content is not known."""
    return [name for name in SHAREABLE if is_shared(name, checkpoint, other)]


def as_model(checkpoint: Checkpoint, before: Sequence[Checkpoint], held: Collection[str] = ()) -> Model:
    """The checkpoint as placement counts it, without what the checkpoints `before` it bring.

    `held`: components that are loaded for it already.
    """
    shared = {name for other in before for name in shared_components(checkpoint, other)} | {*held}
    return Model(
        checkpoint.name,
        checkpoint.pipeline_class.max_images > 0,
        checkpoint.parameters,
        checkpoint.parts,
        tuple(sorted(shared)),
        WORKING_2_1 if checkpoint.class_name == "QwenImage21Pipeline" else WORKING,
        checkpoint.packed,
        checkpoint.pipeline_class.captions,
    )


def is_shared(name: str, checkpoint: Checkpoint, other: Checkpoint) -> bool:
    """Whether the component of this name is the same in both."""
    if checkpoint.folder and other.folder:
        a, b = checkpoint.folder / name, other.folder / name
        return a.is_dir() and b.is_dir() and same_component(a, b)
    if checkpoint.digests or other.digests:  # of a prepared checkpoint whose source is not on this machine
        digest, other_digest = find_digest(name, checkpoint), find_digest(name, other)
        if digest and other_digest:
            return digest == other_digest
    sizes, other_sizes = ((each.parameters.get(name), each.packed.get(name)) for each in (checkpoint, other))
    return name in checkpoint.parameters and sizes == other_sizes


def find_digest(name: str, checkpoint: Checkpoint) -> str | None:
    """The digest of a component's content; None where neither its files nor its digest are on this machine."""
    folder = checkpoint.folder / name if checkpoint.folder else None
    return component_digest(folder) if folder and folder.is_dir() else checkpoint.digests.get(name)


def same_component(a: Path, b: Path) -> bool:
    """Whether two component folders load to the same thing: equal weights and tokenizer files, equivalent configs."""
    names = content_names(a)
    if names != content_names(b):
        return False
    return all(same_file(a / name, b / name) for name in sorted(names, key=lambda name: (a / name).stat().st_size))


def content_names(folder: Path) -> set[str]:
    """The files of a component that count: no hidden ones, no READMEs, and of weights those that are read."""
    names = {file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "README"))}
    if folder.name not in WEIGHTS:
        return names
    read = {file.name for file in shards(folder.parent, folder.name)}
    read |= {f"{stem}{INDEX_SUFFIX}" for stem in (weights_stem(folder.name), PREPARED_STEM)}
    return {name for name in names if name in read or not name.endswith((SUFFIX, INDEX_SUFFIX))}


def same_file(a: Path, b: Path) -> bool:
    """By identity where the disk shows it (hard links, the hub cache's content-named blobs), else by every byte."""
    real_a, real_b = a.resolve(), b.resolve()
    if os.path.samefile(real_a, real_b):
        return True
    if a.name == "config.json":
        return effective_config(a) == effective_config(b)
    if real_a.stat().st_size != real_b.stat().st_size:
        return False
    if is_blob(real_a) and is_blob(real_b):
        return real_a.name == real_b.name
    return filecmp.cmp(real_a, real_b, shallow=False)


def is_blob(file: Path) -> bool:
    """The hub's cache names large files by their SHA-256."""
    return file.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", file.name) is not None


def effective_config(file: Path) -> Json:
    """What of a config.json has an effect on what is loaded."""
    return {key: value for key, value in read_json(file.parent, file.name).items() if key not in PROVENANCE}


def component_digest(folder: Path) -> str:
    """Equal for two component folders exactly where `same_component` holds."""
    digest = hashlib.sha256()
    for name in sorted(content_names(folder)):
        digest.update(f"{name}\0{content_digest(folder / name)}\0".encode())
    return digest.hexdigest()


def content_digest(file: Path) -> str:
    """Equal for two files of a component exactly where `same_file` holds."""
    real = file.resolve()
    if file.name == "config.json":
        return hashlib.sha256(json.dumps(effective_config(file), sort_keys=True).encode()).hexdigest()
    if is_blob(real):
        return real.name
    with real.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
