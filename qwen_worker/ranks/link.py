"""Whether two cards reach each other, found out by two short-lived processes before the worker depends on it.

    python -m qwen_worker.ranks.link RANK PORT DEVICE

A hang in the worker's own process could not be undone, and NCCL reads its environment once. Cards without a way of
their own to each other, as GeForce cards, hang or fail until NCCL_P2P_DISABLE=1 sends their tensors through host
memory: that is tried second. Imports torch inside functions. Knows nothing of models.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from ..errors import MAX_WORDS, LoadError
from ..log import log_line

SECONDS = 90.0  # that both processes may take, of which most is for torch's import on a slow disk
ATTEMPTS: tuple[Mapping[str, str], ...] = ({}, {"NCCL_P2P_DISABLE": "1"})
SHARED_MEMORY = "/dev/shm"
SHARED_BYTES = 64_000_000  # of it, which NCCL takes the most of between two cards that have no other way
COMMAND = (sys.executable, "-m", "qwen_worker.ranks.link")


def second_device() -> dict[str, str]:
    """What has a child process see the second card as its first."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    first, second, *others = named.split(",") if named else ["0", "1"]
    return {"CUDA_VISIBLE_DEVICES": ",".join([second, first, *others])}


def working_environment(device: str = "cuda", seconds: float = SECONDS) -> dict[str, str]:
    """The variables with which the two ranks reach each other. Raises `LoadError` where there are none."""
    reasons: list[str] = []
    for variables in ATTEMPTS:
        failure = try_link(variables, device, seconds)
        if not failure:
            if variables:
                log_line(None, "WARN", f"the cards reach each other through host memory alone: {reasons[-1]}")
            return dict(variables)
        reasons.append(failure)
    raise LoadError(f"the two cards do not reach each other: {reasons[-1]}{shared_memory_words()}")


def try_link(variables: Mapping[str, str], device: str, seconds: float, command: Sequence[str] = COMMAND) -> str:
    """Why a number of each rank cannot be added up, empty where it can."""
    from . import group

    store = group.open_store()
    environments = [{}, second_device() if device == "cuda" else {}]
    # A file and no pipe: a process that a hung one has started would hold the pipe open.
    with tempfile.TemporaryFile("w+") as words:
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(store.port), device],
                env={**os.environ, **group.LOOPBACK, **variables, **more},
                stdout=subprocess.DEVNULL,
                stderr=words,
            )
            for rank, more in enumerate(environments)
        ]
        try:
            failed = [process.wait(seconds) for process in processes]
        except subprocess.TimeoutExpired:
            return f"nothing has arrived within {seconds:.0f} seconds"
        finally:
            for process in processes:
                process.kill()
                process.wait()
        words.seek(0)
        lines = words.read().strip().splitlines()
    return (lines[-1] if lines else "the process that tried it has ended")[:MAX_WORDS] if any(failed) else ""


def shared_memory_words() -> str:
    """What to say of /dev/shm, where it is too small for NCCL."""
    try:
        free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return ""
    if free_bytes >= SHARED_BYTES:
        return ""
    free_mb, wanted_mb = round(free_bytes / 1e6), round(SHARED_BYTES / 1e6)
    return f"; {SHARED_MEMORY} has {free_mb} MB free, and NCCL takes up to {wanted_mb} MB of it"


def main() -> None:
    from . import group

    rank, port, device = sys.argv[1:]
    try:
        group.join(group.reach_store(int(port)), int(rank), device)
    except RuntimeError as error:
        sys.exit(str(error).partition("\n")[0])
    group.leave()


if __name__ == "__main__":
    main()
