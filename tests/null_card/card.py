"""Null cards for tests: the library built, and functions called in processes that have such a card.

A function is called in a process of its own, forked from one that has imported torch and diffusers, so that a card
costs milliseconds and leaves nothing behind. This side imports no torch. Knows nothing of the worker.
"""

import hashlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NATIVE = Path(__file__).parent / "native"
LIBRARY = "libnullcard.so"
NAMES = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1")  # under which it is opened too
CUDA = "13"  # whose headers the library is written for
SECONDS = 300  # what a call may take
LOG_CHARACTERS = 6000  # of what a call has written, in the words about its failure


@dataclass(frozen=True)
class Card:
    """`gigabytes`: of the card's memory as CUDA tells it, 1e9 bytes each; `ram`: the host's that is free, the same.

    `fields`: other fields of `native/null_card.h` at the start.
    """

    gigabytes: float = 80
    capability: tuple[int, int] = (9, 0)
    ram: float = 128
    name: str = "NVIDIA Null"
    fields: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """All fields that differ from the library's own."""
        major, minor = self.capability
        return {"memory": self.gigabytes * 1e9, "capability": 10 * major + minor, **self.fields}


class CallFailed(Exception):
    """A function has raised, or its process has ended otherwise; the text is the end of what it wrote."""


def why_not() -> str | None:
    """Why there is no null card on this machine, None where there is one."""
    if not sys.platform.startswith("linux"):
        return "the null card is a library for Linux"
    if compiler() is None:
        return "the null card needs a C compiler (gcc, cc or clang), and there is none"
    if include_folder() is None:
        return f"the null card is written for torch with CUDA {CUDA}, whose headers are not installed"
    return None


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "gcc"), "cc", "clang"))), None)


def include_folder() -> Path | None:
    """The headers of the CUDA that torch brings."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(place) / f"cu{CUDA}/include" for place in (found and found.submodule_search_locations) or ()]
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


def cache_folder() -> Path:
    """Where the library and the checkpoints are kept from one run to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-null-card"


def library_folder() -> Path:
    """The folder of the library, compiled where its source has changed. Raises `CalledProcessError`."""
    sources = sorted(NATIVE.glob("*.c"))
    digest = hashlib.sha256()
    for file in sorted(NATIVE.rglob("*.[ch]")):
        digest.update(file.read_bytes())
    folder = cache_folder() / f"library-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made = Path(place) / folder.name
        made.mkdir()
        includes = [f"-I{NATIVE}", f"-I{include_folder()}"]
        strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
        command = [compiler(), "-std=gnu11", "-shared", "-fPIC", "-O1", *strict, *includes, *sources]
        subprocess.run([*command, "-o", made / LIBRARY, "-lpthread", "-ldl"], check=True)
        for name in NAMES:
            (made / name).symlink_to(LIBRARY)
        put_in_place(made, folder)
    return folder


def put_in_place(made: Path, folder: Path) -> None:
    """Give a folder its name, once it is complete; another process may have made the same meanwhile."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def environment() -> dict[str, str]:
    """This process's, for one that has a null card: no setting of the worker, no other card, one thread."""
    folder = str(library_folder())
    steering = ("QWEN_", "RUNPOD_", "BUCKET_", "NULL_CARD_", "CUDA_", "PYTORCH_", "SERVER_MODE", "STREAM", "LD_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return kept | {
        "LD_PRELOAD": f"{folder}/{LIBRARY}",
        "LD_LIBRARY_PATH": folder,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # CUDA asked in the process that is forked from would forbid it after
    }


class Processes:
    """Calls functions on null cards, one at a time. A context manager."""

    def __enter__(self) -> "Processes":
        self.folder = Path(tempfile.mkdtemp(prefix="null-card-"))
        self.process: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> "subprocess.Popen[str]":
        """The process that calls are forked from."""
        command = [sys.executable, "-m", "tests.null_card.child"]
        with (self.folder / "log").open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            return subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **pipes)

    def kill(self) -> None:
        """End the process, and with it what it has forked."""
        if self.process is not None:
            with self.process:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None

    def call(self, function: Callable[..., Any], card: Card, *arguments: Any, seconds: float = SECONDS) -> Any:
        """What `function(card, *arguments)` returns in a process with this card; arguments and result are JSON's.

        Raises `CallFailed` where it raises, ends its process or takes longer than `seconds`.
        """
        self.process = self.process or self.start()
        result, log = self.folder / "result.json", self.folder / "call.log"
        result.unlink(missing_ok=True)
        order = {
            "function": f"{function.__module__}:{function.__qualname__}",
            "card": asdict(card),
            "arguments": arguments,
            "result": str(result),
            "log": str(log),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        status = self.process.stdout.readline().strip() if ready else f"nothing in {seconds:g} s"
        if status == "0":
            return json.loads(result.read_text())
        if not status.lstrip("-").isdigit():
            self.kill()
        texts = [file.read_text(errors="replace") for file in (self.folder / "log", log) if file.exists()]
        words = "".join(texts)[-LOG_CHARACTERS:]
        raise CallFailed(f"{function.__name__} on {card} ended with {status or 'no status'}:\n{words}")
