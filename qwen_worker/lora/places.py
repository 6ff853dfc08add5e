"""Where on this disk a LoRA lies, and which of the files of a folder or repository is meant: the LoRA, and peft's
configuration of it.

Opens nothing. Knows nothing of fetching.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.search import candidates
from ..errors import InvalidInput
from ..jobs.sources import PEFT_NAME, STANDARD_NAMES, SUFFIX, HubFile
from ..network.fetch import FetchTarget
from .strength import CONFIG_NAME

STRAY_CONFIG = (
    f"lies beside other LoRAs and one {CONFIG_NAME}, which peft writes for {PEFT_NAME}: an alpha in that was not used"
)
NO_CONFIG = f"has no {CONFIG_NAME} beside it, which peft writes with {PEFT_NAME}: an alpha in that was not used"


class LocalFile(NamedTuple):
    """A file on this disk. `key`: equal for equal contents only, of a file that was fetched: nobody writes to those.

    `config`: peft's configuration that belongs to it; `warnings`: why one may be missing.
    """

    path: Path
    key: str | None = None
    config: Path | None = None
    warnings: tuple[str, ...] = ()


def local_file(path: Path, wanted: FetchTarget, root: Path | None = None) -> LocalFile:
    """A file that somebody has put on this disk, with the configuration beside it.

    `root`: the folder that a job may name files of; no link leads the configuration out of it. Raises what
    `require_size` raises.
    """
    require_size(path, wanted)
    try:
        config = path.with_name(CONFIG_NAME)
        is_here = config.is_file() and (not root or config.resolve().is_relative_to(root.resolve()))
        names = {file.name for file in path.parent.iterdir()} if is_here else set[str]()
        chosen, warning = choose_config(path.name, names)
        return LocalFile(path, None, config if chosen else None, tuple(filter(None, [warning])))
    except OSError:
        raise wanted.fetch_error("cannot be read on the worker's disk") from None


def require_size(path: Path, wanted: FetchTarget) -> None:
    """Raises `invalid_input` for a file that is too large, `lora_fetch_failed` for one that has just gone."""
    try:
        size = path.stat().st_size
    except OSError:
        raise wanted.fetch_error("cannot be read on the worker's disk") from None
    if size > wanted.max_bytes:
        raise wanted.size_error(f"{size / 1e6:.1f} MB")


def choose_config(file: str, names: Iterable[str]) -> tuple[str, str]:
    """The name of peft's configuration that belongs to a LoRA, or a warning where one may; both may be empty.

    `names`: of all files of the repository, or of the folder.
    """
    folder, _, name = file.rpartition("/")
    beside = {other.rpartition("/")[2] for other in names if other.rpartition("/")[0] == folder}
    if CONFIG_NAME not in beside:
        return "", NO_CONFIG if name == PEFT_NAME else ""
    if name == PEFT_NAME or not any(other.endswith(SUFFIX) for other in beside - {name}):
        return f"{folder}/{CONFIG_NAME}".lstrip("/"), ""
    return "", STRAY_CONFIG


def find_in_caches(source: HubFile, roots: Iterable[Path]) -> Path | None:
    """The hub's file in the first of the folders that has it; they are laid out as the hub's cache or as ORG/NAME."""
    for root in roots:
        for folder, _ in candidates(root, source.hub_id, source.revision):
            if folder.is_dir():
                name = source.file or default_lora(file.name for file in folder.iterdir())
                if name and (folder / name).is_file():
                    return folder / name
    return None


def choose_file(source: HubFile, sizes: Mapping[str, int], wanted: FetchTarget) -> str:
    """The name of the file that is meant, of a repository's. Raises `InvalidInput` where that is not clear."""
    if source.file:
        if source.file not in sizes:
            raise InvalidInput(f"{wanted.label} names {source.file}, which {source.hub_id} does not hold")
        return source.file
    name = default_lora(sizes)
    if name is None:
        loras = [name for name in sizes if name.endswith(SUFFIX)]
        listed = ": " + ", ".join(loras[:5]) if loras else ""
        raise InvalidInput(f"{wanted.label} must name a file of {source.hub_id}, which holds {len(loras)}{listed}")
    return name


def find_below(roots: Iterable[Path], text: str) -> tuple[Path, Path] | None:
    """The file that a relative or absolute path names below one of the roots, and that root.

    A link must not lead out of it.
    """
    for root in roots:
        try:
            file = (root / text).resolve()
            if file.is_relative_to(root.resolve()) and file.is_file():
                return file, root
        except (OSError, ValueError, RuntimeError):  # no file can have this name
            continue
    return None


def default_lora(names: Iterable[str]) -> str | None:
    """The file that is meant where a path names a repository or a folder alone, of the files in it; None if unclear."""
    loras = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    return loras[0] if len(loras) == 1 else next((name for name in STANDARD_NAMES if name in loras), None)
