"""The libraries that build pipelines, imported without what the plan does not use and without their grumbling.

diffusers and transformers import torchao and bitsandbytes wherever they are installed: a second or two of a cold start,
for plans that quantize nothing. While they are imported here, packages that are not `wanted` cannot be found, so that
both libraries take them for not installed. That lasts as long as the process: `wanted` is what any of its plans needs.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..memory.footprint import LOSSY
from ..settings import Precision

QUANTIZERS = frozenset({"torchao", "bitsandbytes"})
CLASSES = {  # whose modules are most of the import; the libraries load them when first asked
    "transformers": ("Qwen2_5_VLForConditionalGeneration", "Qwen2Tokenizer"),
    "diffusers": ("QwenImagePipeline", "QwenImageTransformer2DModel", "AutoencoderKLQwenImage"),
}


def quantizers(precision: Precision) -> frozenset[str]:
    """The packages that a plan of this precision needs; all of them while it is not settled."""
    if precision is Precision.AUTO:
        return QUANTIZERS
    if precision not in LOSSY:
        return frozenset()
    return frozenset({"bitsandbytes" if precision is Precision.NF4 else "torchao"})


def import_all(wanted: frozenset[str] = QUANTIZERS) -> None:
    with quietly(), hidden(QUANTIZERS - wanted):
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


class Without:
    """A finder of modules that does not find some packages."""

    def __init__(self, finder: Any, packages: frozenset[str]):
        self.finder, self.packages = finder, packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.packages else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


@contextmanager
def hidden(packages: frozenset[str]) -> Iterator[None]:
    """Within, the packages cannot be imported, unless they have been."""
    before = list(sys.meta_path)
    sys.meta_path[:] = [Without(finder, packages) for finder in before]
    try:
        yield
    finally:
        sys.meta_path[:] = before
