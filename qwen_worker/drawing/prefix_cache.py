"""Qwen-Image-2.1's prefix cache: the keys and values of the prompt and of the input pictures, computed in one step.

The pipeline fills it in the first step and reads it in all others, for each pass of guidance one. At 1024 x 1024 a
picture takes 2 GiB of it, and the pipeline holds it until it returns, while the VAE decodes: here it is given up after
the last step. Knows nothing of jobs.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

ARGUMENT = "use_kv_cache"  # of the pipeline's call


def has_prefix_cache(pipe: Any) -> bool:
    """Whether calls of the pipeline may have one."""
    return ARGUMENT in inspect.signature(pipe.__call__).parameters


@contextmanager
def watching_prefixes(pipe: Any) -> Generator[Callable[[], None]]:
    """Within a call of the pipeline, yields what empties the caches that its transformer has been given."""
    caches: dict[int, Any] = {}

    def remember(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        if (cache := named.get("kv_cache")) is not None:
            caches[id(cache)] = cache

    def empty() -> None:
        for cache in caches.values():
            for layer in cache.layer_caches:
                layer.k = layer.v = None
        caches.clear()

    if not has_prefix_cache(pipe):
        yield empty
        return
    hook = pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield empty
    finally:
        hook.remove()
