"""An image classifier as transformers stores it: where its files lie, what it tells apart, and how large it is.

Reads names, configs and safetensors headers, never weights, and downloads what is not here. Knows nothing of torch, nor
of what is done about what the classifier says.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from ..errors import LoadError
from ..memory.machine import free_disk_bytes
from ..memory.placement import require_disk
from ..network.hub import hub_cache_folder, listing
from .files import Json, indexed_files, indexed_names, is_folder, label_of, read_json, tensors_in
from .remote import download_files, read_remote
from .search import hub_folders

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
READ_FILES = [CONFIG, PROCESSOR, WEIGHTS, INDEX, "model-?????-of-?????.safetensors"]
CLASS = re.compile(r"\w+ForImageClassification(WithTeacher)?")


@dataclass(frozen=True)
class Classifier:
    """A classifier whose files are on this machine. `name`: as a caller may see it."""

    name: str
    folder: Path
    labels: tuple[str, ...]  # by the number of its output
    several_at_once: bool  # whether each label has a probability of its own
    ram_bytes: int  # of its parameters in float32


def fetch(model: str, roots: Iterable[Path]) -> Classifier:
    """The classifier of a folder or a hub id: from this machine, else from the hub.

    Raises `LoadError` where there is none, where it is no image classifier, and where the disk is too small for it;
    nothing of another kind is downloaded but its config.
    """
    if is_folder(model):
        return inspect(Path(model).expanduser(), label_of(model))
    hub_id, _, revision = model.partition("@")
    for folder, _ in hub_folders(model, roots):
        if all((folder / name).is_file() for name in (CONFIG, PROCESSOR)) and has_weights(folder):
            return inspect(folder, hub_id)
    commit, sizes = listing(hub_id, revision)
    for names in ((CONFIG,), (PROCESSOR,), (WEIGHTS, INDEX)):
        if not any(name in sizes for name in names):
            raise LoadError(f"{hub_id} is on the hub and holds no {' or '.join(names)}")
    require_classifier(read_remote(hub_id, CONFIG, commit), hub_id)
    needed_bytes = sum(size for name, size in sizes.items() if any(fnmatchcase(name, one) for one in READ_FILES))
    require_disk(hub_id, needed_bytes, free_disk_bytes(hub_cache_folder()))
    return inspect(download_files(hub_id, commit, READ_FILES, ["*/*"]), hub_id)


def inspect(folder: Path, name: str) -> Classifier:
    """What a folder holds. Raises `LoadError` naming what is missing or of another kind."""
    config = read_json(folder, CONFIG)
    labels = require_classifier(config, name)
    read_json(folder, PROCESSOR)
    numbers = sum(
        math.prod(tensor.shape) for file in weight_files(folder, name) for tensor in tensors_in(file, file.name)
    )
    several_at_once = config.get("problem_type") == "multi_label_classification"
    return Classifier(name, folder, labels, several_at_once, 4 * numbers)


def require_classifier(config: Json, name: str) -> tuple[str, ...]:
    """The labels by their numbers. Raises `LoadError` for the config of a model that is no image classifier."""
    architectures: Any = config.get("architectures")
    classes = [str(one) for one in cast("list[Any]", architectures)] if isinstance(architectures, list) else []
    if not any(CLASS.fullmatch(one) for one in classes):
        raise LoadError(
            f"{name} is no image classifier of transformers, but {', '.join(classes)[:80] or 'of no class'}"
        )
    labels: Any = config.get("id2label")
    by_number = cast("dict[str, Any]", labels) if isinstance(labels, dict) else {}
    names = [by_number.get(str(number)) for number in range(len(by_number))]
    if len(names) < 2 or not all(isinstance(one, str) for one in names):
        raise LoadError(f"{name} names no two labels (id2label in its {CONFIG})")
    return tuple(str(one) for one in names)


def has_weights(folder: Path) -> bool:
    """Whether all files of weights are there; a download that was cut short leaves some out."""
    try:
        return bool(weight_files(folder, ""))
    except LoadError:
        return False


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that transformers reads. Raises `LoadError` naming the first that is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise LoadError(f"{name} holds no {WEIGHTS}: weights of other formats are not read")
    return indexed_files(folder, indexed_names(read_json(folder, INDEX).get("weight_map"), INDEX))
