"""What torch has compiled, kept across starts: one verified file for each kind of machine, below HF_HOME.

Torch itself packs compiled code and unpacks it again (`torch.compiler.save_cache_artifacts`), under keys of its own:
the source, the shapes, its version, the card. For a card the file holds everything. For a CPU, which compiles nothing
unless it is told to, torch builds libraries anew from what the file holds.

A file that was cut off or changed, or is too large, is ignored with a line in the log. Torch unpickles the file's
content: whoever can write below HF_HOME can run code here. Imports torch inside functions. Knows nothing of blocks.
"""

import functools
import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from ..log import log_line
from ..settings import Settings, hub_home
from ..whole_file import write_whole

MAGIC = b"qwen-image compiled 2\n"
SUFFIX = ".compiled"
MB = 1_000_000


class CompileStore:
    """The file of one kind of machine, in the `folder` of all of them.

    `max_bytes`: of all files in the folder together; with 0 nothing is kept. For the thread that compiles.
    """

    def __init__(self, folder: Path, max_bytes: int, kind: str):
        self.file, self.max_bytes = folder / f"{kind}{SUFFIX}", max_bytes
        self.keys: set[tuple[str, str]] = set()  # (type, key) of every artifact in the file
        self.graphs = 0  # that torch had compiled when the store was last saved

    def load(self) -> None:
        """Have torch find what earlier starts compiled. Call it before torch compiles anything."""
        import torch

        if not self.max_bytes:
            return
        try:
            info = torch.compiler.load_cache_artifacts(read_verified(self.file, self.max_bytes))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log_line(None, "WARN", f"{self.file} is ignored: {error}; blocks are compiled anew")
            return
        if info is None:
            log_line(None, "WARN", f"{self.file} is ignored: torch cannot read it; blocks are compiled anew")
            return
        self.keys = artifact_keys(info.artifacts)
        log_line(None, "INFO", f"{self.file} has blocks that an earlier start compiled")

    def save(self) -> None:
        """Keep what torch has compiled, if there is anything new. A file that cannot be written is no failure."""
        import torch
        from torch._dynamo.utils import counters

        graphs = counters["stats"]["unique_graphs"]
        if not self.max_bytes or graphs == self.graphs:
            return
        self.graphs = graphs
        packed = torch.compiler.save_cache_artifacts()
        if packed is None:
            return
        data, info = packed
        keys = artifact_keys(info.artifacts)
        if not keys <= self.keys:
            self.keys = keys
            self.keep(data)

    def keep(self, data: bytes) -> None:
        """Write what torch has packed, unless it is too large or the disk does not take it, which the log says."""
        if len(data) > self.max_bytes:
            why = f"{len(data) / MB:.0f} MB are more than QWEN_COMPILED_MB"
            log_line(None, "WARN", f"what was compiled is not kept: {why}")
            return
        try:
            self.write(data)
        except OSError as error:
            log_line(None, "WARN", f"what was compiled is not kept: {error}")
            return
        log_line(None, "INFO", f"{len(data) / MB:.1f} MB of compiled blocks are in {self.file}")

    def write(self, data: bytes) -> None:
        """Replace the file in one move, and delete the oldest files of other kinds beyond the bound.

        Raises `OSError`.
        """
        write_whole(self.file, MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        others = [path for path in self.file.parent.glob(f"*{SUFFIX}") if path != self.file]
        room = self.max_bytes - self.file.stat().st_size
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            room -= path.stat().st_size
            if room < 0:
                path.unlink(missing_ok=True)


def folder(settings: Settings) -> Path:
    """Where the files of all kinds of machines lie, and notes beside them."""
    return settings.QWEN_COMPILED_FOLDER or hub_home() / "qwen-image-compiled"


@functools.cache
def process_store(folder: Path, max_bytes: int, card: str | None) -> CompileStore:
    """The store of this process, loaded. There is one, because torch has one cache in a process."""
    store = CompileStore(folder, max_bytes, machine_kind(card))
    store.load()
    return store


def artifact_keys(artifacts: Mapping[str, Iterable[str]]) -> set[tuple[str, str]]:
    """(type, key) of every artifact that torch has packed; `artifacts`: their keys by type."""
    return {(kind, key) for kind, keys in artifacts.items() for key in keys}


def read_verified(file: Path, max_bytes: int) -> bytes:
    """What torch packed into the file. Raises `ValueError` where it is none of ours or not as it was written."""
    if file.stat().st_size > max_bytes + 100:  # the magic and the digest
        raise ValueError("it is larger than QWEN_COMPILED_MB")
    head, _, rest = file.read_bytes().partition(b"\n")
    if head + b"\n" != MAGIC:
        raise ValueError("it is no file of compiled blocks")
    digest, _, data = rest.partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("it is damaged")
    return data


def package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine_kind(card: str | None) -> str:
    """What compiled code is made for, as a file's name: packages' versions, and the card or the CPU's instructions."""
    import torch

    packages = {name: package_version(name) for name in ("diffusers", "triton", "torchao", "peft")}
    facts = [torch.__version__, torch.version.cuda, platform.python_version(), platform.machine(), packages]
    facts += [card or torch.backends.cpu.get_cpu_capability()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    label = "".join(letter if letter.isalnum() else "-" for letter in (card or "cpu").lower())
    return f"{label}-torch{torch.__version__.partition('+')[0]}-{digest}"
