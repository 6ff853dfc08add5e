"""The RAM that the container leaves this process: the limits and counts of its control groups, of version 1 or 2.

A group's limit holds for all groups inside it, so that the tightest from the process's own group up to the topmost
counts. A container often sees its own group as the topmost, under the name that the group has outside. Reads Linux's
files; elsewhere nothing is limited. Knows nothing of the machine around the container.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Files:
    """The names by which one version of control groups gives a group's memory."""

    limit: str
    used: str
    # The keys in memory.stat: pages of files, which go when memory is short, as Linux's MemAvailable has it too. Those
    # that were read again, after reading ahead, are active. Files of a tmpfs are in neither list: they are anonymous.
    reclaimable: tuple[str, str]


VERSION_2 = Files("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


@dataclass(frozen=True)
class Limit:
    """What a group may hold, and holds beside the page cache that gives way: None where that is not to be read."""

    bytes: int
    used_bytes: int | None


def read_limits() -> list[Limit]:
    """The limits that this process lives under; empty where there are none."""
    found = [read_limit(group, files) for group, files in groups()]
    return [limit for limit in found if limit]


def groups() -> Iterator[tuple[Path, Files]]:
    """The folders of the process's own memory group and of those around it, as far as they can be seen."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    paths = {
        controllers: path for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1)
    }
    version_1 = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), "/")
    for root, path, files in ((ROOT / "memory", version_1, VERSION_1), (ROOT, paths.get("", "/"), VERSION_2)):
        own = root / path.strip("/")
        yield from ((folder, files) for folder in (own, *own.parents) if folder.is_relative_to(root))


def read_limit(folder: Path, files: Files) -> Limit | None:
    """One group's; None where it has no limit, or is not to be seen from in here."""
    limit_bytes = read_number(folder / files.limit)
    if limit_bytes is None:
        return None
    used_bytes = read_number(folder / files.used)
    if used_bytes is None:
        return Limit(limit_bytes, None)
    return Limit(limit_bytes, max(0, used_bytes - reclaimable_bytes(folder, files.reclaimable)))


def read_number(path: Path) -> int | None:
    """The file's number; None where there is no such file, or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def reclaimable_bytes(folder: Path, keys: Collection[str]) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(number) for name, number in map(str.split, lines) if name in keys)
