"""The libraries that pipelines are built with, imported once, quietly, and in the order in which a load needs them.

Their import takes most of a cold start, and one core of the processor. A worker therefore begins with it at its own
start, beside what waits there for others, and a load waits for no more of it than the component at hand needs: while
the text encoder is read, the library of the transformer is imported. Knows nothing of plans.
"""

import functools
import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ..errors import CudaSpoiledError, LoadError
from ..memory import card
from ..memory.failures import attempt
from ..memory.machine import read_gpu

# In their order, with the modules that the libraries themselves import only when one of these classes is asked for.
CLASSES = {
    "torch": (),
    "transformers": ("Qwen2_5_VLForConditionalGeneration", "Qwen2Tokenizer"),
    "diffusers": ("QwenImagePipeline", "QwenImageTransformer2DModel", "AutoencoderKLQwenImage"),
}
imported: set[str] = set()
# One for each library: a thread that needs the first is not kept waiting for the second. Only one thread imports at a
# time, because each goes through them in their order: two that entered one library's circles of modules at different
# ends would meet modules that are half imported.
locks = {library: threading.Lock() for library in CLASSES}


def begin() -> None:
    """Import them all on a thread of their own. What fails there fails again, and is raised, where it is needed."""
    threading.Thread(target=import_ahead, name="imports", daemon=True).start()


def import_ahead() -> None:
    with suppress(LoadError, CudaSpoiledError):
        attempt(import_with_card)


def import_with_card() -> None:
    """Import them all. Raises `LoadError` where there is a card that does not start."""
    import_up_to("torch")
    if read_gpu():
        card.start()  # the others look for a card as they are imported, and hide why there is none
    import_all()


def import_all() -> None:
    """Import the libraries and those classes; without progress bars from then on."""
    import_up_to("diffusers")


def import_up_to(last: str) -> None:
    """Import the libraries as far as `last`; one that another thread is importing is waited for."""
    for library in CLASSES:
        with locks[library]:
            if library not in imported:
                with quiet_libraries(), collector_paused(), compiler_left_out():
                    import_library(library)
                if library != "diffusers":  # beside the last, weights may be in memory, which would never be freed
                    gc.freeze()  # modules stay for good: no collection has to go through them again
                imported.add(library)
        if library == last:
            return


def import_library(library: str) -> None:
    module = importlib.import_module(library)
    for name in CLASSES[library]:
        getattr(module, name)
    if library == "diffusers":
        importlib.import_module("diffusers.quantizers")
    if library != "torch":
        module.utils.logging.disable_progress_bar()


@contextmanager
def collector_paused() -> Generator[None]:
    """Within, nothing looks for garbage: there is next to none, and the search among all modules takes long.

    The SDK's heartbeat is forked at about this time; it collects all the same.
    """
    was_enabled = gc.isenabled()
    if was_enabled:
        collect_in_forks()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def collect_in_forks() -> None:
    os.register_at_fork(after_in_child=gc.enable)


@contextmanager
def compiler_left_out() -> Generator[None]:
    """Within, on a machine without a card, `torch.compile` returns what it is given.

    bitsandbytes calls it as it is imported, for functions that only some processors use. torch would import its
    compiler for that, which takes a second and which nothing else needs where no card is.
    """
    if "TORCHDYNAMO_DISABLE" in os.environ or read_gpu():
        yield
        return
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Within, the quantization libraries do not warn of optional parts that are not used here."""
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "torch.utils._pytree")]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    chosen = os.environ.get("DIFFUSERS_VERBOSITY")  # read once, by the import
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["DIFFUSERS_VERBOSITY"]
            if "diffusers" in sys.modules:
                sys.modules["diffusers"].utils.logging.set_verbosity_warning()
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
