"""What torch has compiled, kept across starts: one verified file for each kind of machine, below HF_HOME.

Torch itself packs what it has compiled and lays it out again (`torch.compiler.save_cache_artifacts`), under keys of its
own: the code, the shapes, its version, the card. On a card that is everything; on a CPU, which compiles nothing unless
it is told to, libraries are built anew from what was kept.

A file that was cut off or changed, is another kind's or too large is ignored with a line in the log. Torch unpickles
what is in it: whoever can write there can run code here, as with everything below HF_HOME. Imports torch inside
functions. Knows nothing of blocks.
"""

import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ..log import log_line

MAGIC = b"qwen-image compiled 2\n"
SUFFIX = ".compiled"
MB = 1_000_000


class CompileStore:
    """`folder`: where the files of all kinds of machines are; `limit`: bytes of all of them together, 0 for none."""

    def __init__(self, folder: Path, limit: int, kind: str):
        self.file, self.limit = folder / f"{kind}{SUFFIX}", limit
        self.kept: set[tuple[str, str]] = set()  # type and key of what is in the file
        self.graphs = 0  # that torch had compiled at the last look

    def load(self) -> None:
        """Have torch find what earlier starts compiled. Before it compiles anything."""
        import torch

        if not self.limit:
            return
        try:
            info = torch.compiler.load_cache_artifacts(verified(self.file, self.limit))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log_line(None, "WARN", f"{self.file} is ignored: {error}; blocks are compiled anew")
            return
        if info is None:
            log_line(None, "WARN", f"{self.file} is ignored: torch cannot read it; blocks are compiled anew")
            return
        self.kept = keys_of(info.artifacts)
        log_line(None, "INFO", f"{self.file} has blocks that an earlier start compiled")

    def save(self) -> None:
        """Keep what has been compiled since, if anything has. A file that cannot be written is no failure."""
        import torch
        from torch._dynamo.utils import counters

        graphs = counters["stats"]["unique_graphs"]
        if not self.limit or graphs == self.graphs:
            return
        self.graphs = graphs
        packed = torch.compiler.save_cache_artifacts()
        if packed is None or keys_of(packed[1].artifacts) <= self.kept:
            return
        self.kept = keys_of(packed[1].artifacts)
        self.keep(packed[0])

    def keep(self, data: bytes) -> None:
        """Put what torch has packed in the file's place, if it is within the bound and the disk takes it."""
        if len(data) > self.limit:
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
        """In one move, and the oldest files of other kinds out of the way."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.file.parent, delete=False) as temporary:
            try:
                temporary.write(MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
                temporary.flush()
                os.replace(temporary.name, self.file)
            except OSError:  # a full disk: no part of a file stays there
                os.unlink(temporary.name)
                raise
        others = [path for path in self.file.parent.glob(f"*{SUFFIX}") if path != self.file]
        room = self.limit - self.file.stat().st_size
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            room -= path.stat().st_size
            if room < 0:
                path.unlink(missing_ok=True)


@functools.cache
def store_of_process(folder: Path, limit: int, card: str | None) -> CompileStore:
    """The store of this process, loaded: torch has one cache in a process."""
    store = CompileStore(folder, limit, kind_of(card))
    store.load()
    return store


def keys_of(artifacts: Mapping[str, list[str]]) -> set[tuple[str, str]]:
    """(type, key) of every part that torch has packed."""
    return {(kind, key) for kind, keys in artifacts.items() for key in keys}


def verified(file: Path, limit: int) -> bytes:
    """What torch packed into the file. Raises `ValueError` where it is none of ours or not as it was written."""
    if file.stat().st_size > limit + 100:
        raise ValueError("it is larger than QWEN_COMPILED_MB")
    head, _, rest = file.read_bytes().partition(b"\n")
    if head + b"\n" != MAGIC:
        raise ValueError("it is no file of compiled blocks")
    digest, _, data = rest.partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("it is damaged")
    return data


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def kind_of(card: str | None) -> str:
    """What compiled code is for: versions and the card, or the CPU's instructions, as a file's name."""
    import torch

    packages = {name: version_of(name) for name in ("diffusers", "triton", "torchao", "peft")}
    facts = [torch.__version__, torch.version.cuda, platform.python_version(), platform.machine(), packages]
    facts += [card or torch.backends.cpu.get_cpu_capability()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    label = "".join(letter if letter.isalnum() else "-" for letter in (card or "cpu").lower())
    return f"{label}-torch{torch.__version__.partition('+')[0]}-{digest}"
