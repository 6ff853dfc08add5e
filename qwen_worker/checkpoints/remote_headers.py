"""A checkpoint on the hub as its headers describe it, before its weights are fetched: so that it is planned exactly.

A hollow copy of the repository is inspected as any folder is: configs are whole, weight files are their headers before
a hole, other files are empty. It takes some hundred kilobytes of the line and of the disk, and is gone afterwards.
Knows nothing of torch or pipelines.
"""

import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import LoadError
from ..network.hub import WEIGHT_FILES, download_file, hub_cache_folder, read_start
from .checkpoint import Checkpoint, inspect
from .classes import WEIGHTS
from .files import HEADER_LIMIT, INDEX_SUFFIX, shards

FIRST_READ = 100_000  # bytes, in which the headers of nearly all files lie
CONFIGS = ("model_index.json", *(f"{component}/config.json" for component in WEIGHTS))


def inspect_remote(hub_id: str, commit: str, sizes: Mapping[str, int], without: Collection[str] = ()) -> Checkpoint:
    """What a repository holds, as `inspect` says it of a folder, of the components but those `without`.

    `sizes`: of its files in bytes, by name.

    Raises `LoadError`, also for headers that do not fit their files.
    """
    with tempfile.TemporaryDirectory(prefix="qwen-headers-") as place:
        folder = Path(place) / hub_id.replace("/", "--")
        write_hollow(folder, hub_id, commit, sizes, without)
        found = inspect(folder, without)
    stored = sum(size for name, size in sizes.items() if is_weight_file(name))
    return replace(found, name=hub_id, hub_id=hub_id, revision=commit, folder=None, stored_bytes=stored)


def write_hollow(
    folder: Path, hub_id: str, commit: str, sizes: Mapping[str, int], without: Collection[str] = ()
) -> None:
    """Write what `inspect` reads of the repository below the folder, but for the weights of the components `without`."""
    for name, size in sizes.items():
        if name != "model_index.json" and name.count("/") != 1 or ".." in name:
            continue
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name in CONFIGS or name.endswith(INDEX_SUFFIX):
            shutil.copyfile(download_file(hub_id, name, commit, hub_cache_folder()), file)
            continue
        with file.open("wb") as stream:
            stream.truncate(size if is_weight_file(name) else 0)
    for component in (name for name in WEIGHTS if name not in without):
        for file in shards(folder, component) if (folder / component).is_dir() else ():
            with file.open("r+b") as stream:
                stream.write(read_header_bytes(hub_id, f"{component}/{file.name}", commit, file.stat().st_size))


def is_weight_file(name: str) -> bool:
    """Whether it is one of those that the libraries read: their patterns' * crosses folders."""
    return name.count("/") == 1 and any(fnmatchcase(name, pattern) for pattern in WEIGHT_FILES)


def read_header_bytes(hub_id: str, name: str, commit: str, size: int) -> bytes:
    """The beginning of a safetensors file of `size` bytes, as far as its header goes. Raises `LoadError`."""
    start = read_start(hub_id, name, commit, min(size, FIRST_READ))
    end = 8 + int.from_bytes(start[:8], "little")
    if end > len(start) and end <= min(size, HEADER_LIMIT):  # else `inspect` says what is wrong with it
        start = read_start(hub_id, name, commit, end)
    if len(start) < min(end, size, FIRST_READ):
        raise LoadError(f"{hub_id} could not be fetched: the hub sent {len(start):,} bytes of {name}", transient=True)
    return start[:end]
