"""Whether two checkpoints' components are the same by content, so that one copy in memory can serve both.

By content and not by name: two checkpoints of one family may differ in any component. Reads files, loads nothing.
"""

import filecmp
import hashlib
import json
import os
import re
from pathlib import Path

from ..memory.footprint import WORKING, WORKING_2_1, Model
from .checkpoint import Checkpoint
from .files import read_json

SHAREABLE = ("text_encoder", "vae", "tokenizer")  # each edit or fine-tune has a transformer of its own
# Written by the saving library and without effect on what is loaded.
PROVENANCE = {"_name_or_path", "_diffusers_version", "transformers_version"}


def in_common(found: Checkpoint, other: Checkpoint) -> list[str]:
    """What two checkpoints have in common: by content, or by size while that is not known."""
    return [name for name in SHAREABLE if same(name, found, other)]


def as_model(found: Checkpoint, before: list[Checkpoint]) -> Model:
    """The checkpoint as placement counts it, without what models before it bring."""
    shared = {name for other in before for name in in_common(found, other)}
    return Model(
        found.name,
        found.pipeline_class.max_images > 0,
        found.parameters,
        found.parts,
        tuple(sorted(shared)),
        WORKING_2_1 if found.class_name == "QwenImage21Pipeline" else WORKING,
    )


def same(name: str, found: Checkpoint, other: Checkpoint) -> bool:
    ours, theirs = (one.folder / name if one.folder else None for one in (found, other))
    if ours and theirs:
        return ours.is_dir() and theirs.is_dir() and same_component(ours, theirs)
    if found.digests or other.digests:  # of a prepared checkpoint whose source is not here
        first, second = content(name, found), content(name, other)
        if first and second:
            return first == second
    return name in found.parameters and found.parameters[name] == other.parameters.get(name)


def content(name: str, found: Checkpoint) -> str | None:
    """The digest of a component, None where there is nothing to take it of."""
    folder = found.folder / name if found.folder else None
    return digest_of(folder) if folder and folder.is_dir() else found.digests.get(name)


def same_component(a: Path, b: Path) -> bool:
    """Whether two component folders load to the same thing: equal weights and tokenizer files, equivalent configs."""
    names = content_names(a)
    if names != content_names(b):
        return False
    return all(same_file(a / name, b / name) for name in sorted(names, key=lambda name: (a / name).stat().st_size))


def content_names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "README"))}


def same_file(a: Path, b: Path) -> bool:
    """By identity where the disk shows it (hard links, the hub cache's content-named blobs), else by every byte."""
    real_a, real_b = a.resolve(), b.resolve()
    if os.path.samefile(real_a, real_b):
        return True
    if a.name == "config.json":
        return meaning(a) == meaning(b)
    if real_a.stat().st_size != real_b.stat().st_size:
        return False
    if is_blob(real_a) and is_blob(real_b):
        return real_a.name == real_b.name
    return filecmp.cmp(real_a, real_b, shallow=False)


def is_blob(file: Path) -> bool:
    """The hub's cache names large files by their SHA-256."""
    return file.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", file.name) is not None


def meaning(config: Path) -> dict:
    return {key: value for key, value in read_json(config.parent, config.name).items() if key not in PROVENANCE}


def digest_of(component: Path) -> str:
    """Equal for two component folders exactly where `same_component` holds."""
    digest = hashlib.sha256()
    for name in sorted(content_names(component)):
        digest.update(f"{name}\0{digest_of_file(component / name)}\0".encode())
    return digest.hexdigest()


def digest_of_file(file: Path) -> str:
    real = file.resolve()
    if file.name == "config.json":
        return hashlib.sha256(json.dumps(meaning(file), sort_keys=True).encode()).hexdigest()
    if is_blob(real):
        return real.name
    with real.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
