"""A worker of two cards whose ranks fail when a test says so: its handler's process, and that of its second card.

    python -m tests.support.faulty_ranks FOLDER
    python -m tests.support.faulty_ranks FOLDER DESCRIPTOR PARENT

In FOLDER a file named for a rank, such as `1`, has its next pass of the transformer raise what the file says, and is
gone then. Knows nothing of jobs.
"""

import sys
from pathlib import Path
from typing import Any

from qwen_worker.errors import CudaSpoiledError

OUT_OF_MEMORY, ERROR, SPOILED = "out of memory", "error", "spoiled"


def plant(folder: Path, rank: int, words: str) -> None:
    draft = folder / f".{rank}"
    draft.write_text(words)
    draft.rename(folder / str(rank))


def is_met(folder: Path, rank: int) -> bool:
    return not (folder / str(rank)).exists()


def meet(folder: Path, rank: int) -> None:
    """Raise what is planted for the rank."""
    import torch

    file = folder / str(rank)
    if not file.exists():
        return
    words = file.read_text()
    file.unlink()
    if words == OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("CUDA out of memory")
    raise CudaSpoiledError("a planted error") if words == SPOILED else RuntimeError("a planted error")


def run_worker(folder: Path) -> None:
    import runpod_handler
    from qwen_worker.drawing.split_passes import SecondPasses
    from qwen_worker.loading import second_card

    own = SecondPasses.__init__

    def with_faults(self: Any, stock: Any, *arguments: Any) -> None:
        def computed(**inputs: Any) -> Any:
            meet(folder, 0)
            return stock(**inputs)

        own(self, computed, *arguments)

    SecondPasses.__init__ = with_faults
    second_card.COMMAND = (sys.executable, "-m", "tests.support.faulty_ranks", str(folder))
    runpod_handler.main()


def run_second_rank(folder: Path) -> None:
    from qwen_worker import second_rank

    own = second_rank.SecondRank.compute

    def compute(self: Any, *arguments: Any) -> Any:
        meet(folder, 1)
        return own(self, *arguments)

    second_rank.SecondRank.compute = compute
    second_rank.main()


if __name__ == "__main__":
    place = Path(sys.argv.pop(1))
    (run_second_rank if len(sys.argv) > 1 else run_worker)(place)
