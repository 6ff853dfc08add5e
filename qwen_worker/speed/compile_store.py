"""What torch has compiled, kept across starts: one verified file a machine's kind, below HF_HOME.

Torch keeps all of it in a folder (graphs with their kernels, Triton's binaries, C++ libraries) under keys of its own:
the code, the shapes, its version, the card. That folder is the machine's own; a start unpacks it from the file, a
compilation packs it anew. `torch.compiler.save_cache_artifacts` packs less, without the libraries of a CPU, which would
be compiled at each start; and a network volume is slow with hundreds of small files, and knows no locks to trust.

A file that was cut off or changed, is another kind's or too large is ignored with a line in the log. Torch unpickles
what is in it: whoever can write there can run code here, as with everything below HF_HOME. Where
TORCHINDUCTOR_CACHE_DIR is set, torch keeps its folder there and nothing is packed. Imports torch inside functions.
"""

import contextlib
import functools
import hashlib
import io
import os
import platform
import tarfile
import tempfile
import zlib
from importlib import metadata
from pathlib import Path

from ..log import log_line

MAGIC = b"qwen-image compiled 1\n"
SUFFIX = ".compiled"
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
LOCKS = "locks"  # of torch's folder: of no use to others
COMPRESSION = 1  # of a second for the work of a minute
MB = 1_000_000


class CompileStore:
    """`folder`: where the files of all kinds of machines are; `limit`: bytes of all of them together, 0 for none."""

    def __init__(self, folder: Path, limit: int, kind: str, work: Path | None = None):
        self.file, self.limit = folder / f"{kind}{SUFFIX}", limit
        self.work = work or Path(tempfile.gettempdir()) / f"qwen-image-compiled-{os.getuid()}" / kind
        self.packed: set[str] = set()  # names in the work folder that the file has

    def open(self) -> None:
        """Have torch find what earlier starts compiled. Before it compiles anything."""
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        # Importing torch's compiler sets the variable to its default.
        if os.environ.get(VARIABLE, default_cache_dir()) not in (default_cache_dir(), str(self.work)):
            self.limit = 0
        if not self.limit:
            return
        os.environ[VARIABLE] = str(self.work)
        if self.work.is_dir():  # an earlier worker's of this container
            self.packed = self.names() if self.file.is_file() else set()
            return
        try:
            data = verified(self.file, self.limit)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log_line(None, "WARN", f"{self.file} is ignored: {error}; blocks are compiled anew")
            return
        try:
            self.unpack(data)
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            log_line(None, "WARN", f"{self.file} cannot be unpacked: {error}; blocks are compiled anew")

    def unpack(self, data: bytes) -> None:
        """Into the work folder, whole or not at all, beside workers that do the same."""
        self.work.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.work.parent) as unpacked:
            tarfile.open(fileobj=io.BytesIO(data)).extractall(unpacked, filter="data")
            try:
                os.rename(unpacked, self.work)
            except OSError:
                return  # another worker was first
            os.mkdir(unpacked)  # for its own end
        self.packed = self.names()
        log_line(None, "INFO", f"{self.file} has blocks that an earlier start compiled")

    def save(self) -> None:
        """Keep what has been compiled since, if anything has. A file that cannot be written is no failure."""
        if not self.limit or not (names := self.names()) - self.packed:
            return
        try:
            data = self.pack(names)
            if len(data) > self.limit:
                why = f"{len(data) / MB:.0f} MB are more than QWEN_COMPILED_MB"
                log_line(None, "WARN", f"what was compiled is not kept: {why}")
            else:
                self.write(data)
                log_line(None, "INFO", f"{len(data) / MB:.1f} MB of compiled blocks are in {self.file}")
        except OSError as error:
            log_line(None, "WARN", f"what was compiled is not kept: {error}")
        self.packed = names

    def names(self) -> set[str]:
        found = (path.relative_to(self.work) for path in self.work.rglob("*") if path.is_file())
        return {str(path) for path in found if LOCKS not in path.parts}

    def pack(self, names: set[str]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=COMPRESSION) as archive:
            for name in sorted(names):
                with contextlib.suppress(FileNotFoundError):  # torch's own temporary file
                    archive.add(self.work / name, name)
        return buffer.getvalue()

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
def opened(folder: Path, limit: int, card: str | None) -> CompileStore:
    """The store of this process, opened: torch has one folder in a process."""
    store = CompileStore(folder, limit, kind_of(card))
    store.open()
    return store


def verified(file: Path, limit: int) -> bytes:
    """The archive in the file. Raises `ValueError` where it is none of ours or not as it was written."""
    if file.stat().st_size > limit + 100:
        raise ValueError("it is larger than QWEN_COMPILED_MB")
    head, _, rest = file.read_bytes().partition(b"\n")
    if head + b"\n" != MAGIC:
        raise ValueError("it is no file of compiled blocks")
    digest, _, data = rest.partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("it is damaged")
    return data


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def kind_of(card: str | None) -> str:
    """What compiled code is for: versions and the card, or the CPU's instructions, as a file's name."""
    import torch

    packages = {name: version(name) for name in ("diffusers", "triton", "torchao", "peft")}
    facts = [torch.__version__, torch.version.cuda, platform.python_version(), platform.machine(), packages]
    facts += [card or torch.backends.cpu.get_cpu_capability()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    label = "".join(letter if letter.isalnum() else "-" for letter in (card or "cpu").lower())
    return f"{label}-torch{torch.__version__.partition('+')[0]}-{digest}"
