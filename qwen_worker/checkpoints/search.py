"""The search for a checkpoint on this machine: a folder, or a hub id below the roots and in the hub's cache.

Knows nothing of what a folder holds (`checkpoint.py`), and opens no socket.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import LoadError
from ..log import log_line
from ..network.hub import hub_cache_folder
from .checkpoint import Checkpoint, inspect, is_complete
from .files import is_folder, label_of, spellings


def find(model: str, roots: Iterable[Path]) -> Checkpoint | None:
    """The checkpoint on this machine: `model` as a folder, else its hub id below the roots, then in the hub's cache.

    None where it is not here. Raises `LoadError` where a folder is there and is not a checkpoint that can be served.
    """
    if is_folder(model):
        return inspect(Path(model).expanduser())
    hub_id = model.partition("@")[0]
    for folder, commit in hub_folders(model, roots):
        if is_complete(folder):
            checkpoint = inspect(folder)
            return replace(checkpoint, name=hub_id, hub_id=hub_id, revision=commit or checkpoint.revision)
    return None


def hub_folders(model: str, roots: Iterable[Path]) -> Iterator[tuple[Path, str | None]]:
    """(folder, commit) of each place here that may hold a hub id's files, whole or not, in the order of the search.

    Raises `LoadError` for what is no hub id.
    """
    hub_id, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise LoadError(f"{label_of(model)} is neither a folder here nor a hub id such as Qwen/Qwen-Image")
    for root in (*roots, hub_cache_folder()):
        yield from candidates(root, hub_id, revision)


def candidates(root: Path, hub_id: str, revision: str) -> list[tuple[Path, str | None]]:
    """(folder, commit) below a root, in the layout of the hub's cache or as a plain ORG/NAME folder.

    Ids are equal whatever their case, and platforms write folders in lower case. Among several spellings the id's own
    comes first, then the others in alphabetical order.
    """
    found: list[tuple[Path, str | None]] = []
    for cache in spellings(root, f"models--{hub_id.replace('/', '--')}"):
        found += snapshots_of(cache, revision)
    if found or revision:
        return found
    organisation, name = hub_id.split("/")
    return [(folder, None) for above in spellings(root, organisation) for folder in spellings(above, name)]


def snapshots_of(cache: Path, revision: str) -> list[tuple[Path, str | None]]:
    """(folder, commit) of a revision in one model's folder of the hub's cache; of the main branch where it is empty."""
    snapshots = cache / "snapshots"
    reference = cache / "refs" / (revision or "main")
    if reference.is_file():
        commit = read_reference(reference)
        return [(snapshots / commit, commit)] if commit else []
    folders = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    if revision:
        return [(folder, folder.name) for folder in folders if folder.name.startswith(revision)]
    # Without a ref, a single snapshot is unambiguous; among several nothing says which is meant.
    return [(folder, folder.name) for folder in folders] if len(folders) == 1 else []


def read_reference(file: Path) -> str | None:
    """The commit that a ref of the hub's cache names; None, with a line in the log, for one that is damaged."""
    try:
        with file.open("rb") as stream:
            text = stream.read(200).strip()
    except OSError:
        text = b""
    if re.fullmatch(rb"\w[\w.-]{0,100}", text):
        return text.decode()
    label = f"{file.parents[1].name}/refs/{file.name}"
    log_line(None, "WARN", f"{label} names no commit and is damaged: the model is looked for in the next place")
    return None
