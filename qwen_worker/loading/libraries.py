"""The libraries that pipelines are built with, imported without their warnings, and the classes that take longest.

Knows nothing of plans.
"""

import importlib
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

# The classes whose modules are most of the import: the libraries import them only when they are asked for.
CLASSES = {
    "transformers": ("Qwen2_5_VLForConditionalGeneration", "Qwen2Tokenizer"),
    "diffusers": ("QwenImagePipeline", "QwenImageTransformer2DModel", "AutoencoderKLQwenImage"),
}


def import_all() -> None:
    """Import the libraries and those classes; without progress bars from then on."""
    with quiet_libraries():
        for library, names in CLASSES.items():
            module = importlib.import_module(library)
            for name in names:
                getattr(module, name)
        importlib.import_module("diffusers.quantizers")
    for library in CLASSES:
        sys.modules[library].utils.logging.disable_progress_bar()


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
