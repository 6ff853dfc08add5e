"""What is done about an exception that nobody foresaw: put into words and let go, unless CUDA itself has failed.

Whoever tries something of the worker's own that has a plainer way beside it tries it by `attempt`, or within
`absorb_failure`. Knows nothing of what was tried.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ..errors import Cancelled, CudaSpoiledError, JobError, LoadError, describe_error, is_out_of_memory
from ..log import log_exception
from . import cuda

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """An exception in words. The exception itself is let go: its traceback holds the tensors of every frame."""

    reason: str
    out_of_memory: bool = False  # of the card, or of the host memory that is pinned for it


@contextmanager
def absorb_failure() -> Generator[list[Failure]]:
    """Within, an exception ends the block alone; the list has its words then, and the log its traceback.

    Raises `JobError`, `LoadError` and `Cancelled`, which are answers, and `CudaSpoiledError` where CUDA has failed for
    good, so that no plainer way could go on in this process.
    """
    failures: list[Failure] = []
    spoiled = False
    try:
        yield failures
    except (JobError, LoadError, Cancelled, CudaSpoiledError):
        raise
    except Exception as error:  # noqa: BLE001  an optimisation may raise anything, and costs no more than itself
        log_exception(None)
        failures.append(Failure(describe_error(error), is_out_of_memory(error)))
        spoiled = cuda.has_spoiled(error)
    # Outside the handler, where nothing holds the exception any more.
    if spoiled:
        raise CudaSpoiledError(failures[0].reason)


def attempt(work: Callable[[], Result]) -> Result | Failure:
    """What `work` returns, or what it raised, in words. Raises what `absorb_failure` raises."""
    with absorb_failure() as failures:
        return work()
    return failures[0]
