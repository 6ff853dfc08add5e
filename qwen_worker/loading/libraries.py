"""The libraries that build pipelines, imported without their grumbling, and the classes that most of the import is.

Knows nothing of plans.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CLASSES = {  # whose modules are most of the import; the libraries load them when first asked
    "transformers": ("Qwen2_5_VLForConditionalGeneration", "Qwen2Tokenizer"),
    "diffusers": ("QwenImagePipeline", "QwenImageTransformer2DModel", "AutoencoderKLQwenImage"),
}


def import_all() -> None:
    with quietly():
        for library, names in CLASSES.items():
            module = importlib.import_module(library)
            for name in names:
                getattr(module, name)
        importlib.import_module("diffusers.quantizers")
    for library in CLASSES:
        sys.modules[library].utils.logging.disable_progress_bar()


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps the quantization libraries from grumbling about optional parts that are not used here."""
    noisy = [logging.getLogger(name) for name in ("bitsandbytes", "torch.utils._pytree")]
    for logger in noisy:
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
        for logger in noisy:
            logger.setLevel(logging.NOTSET)
