"""Guidance in a part of a picture's steps: in the others the transformer computes the prompt's pass alone.

The pipelines fix the scale of guidance for a whole picture, and call the transformer twice in each step. Outside of the
part, the second call is answered with the result of the first. What the pipelines add to it then is a multiple of 0,
and what they scale it by is 1: the step is bit-equal to one without guidance. Lossy against guidance in all steps, and
so only where a job asks for it (limited-interval guidance, https://arxiv.org/abs/2404.07724).

A step cache's history of the second pass begins with the first step that has one. Imports no torch itself. Knows
nothing of jobs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..model.overrides import overridden

FILLS_CACHE = {"kv_cache_mode": "extract"}  # of Qwen-Image-2.1's first step: each pass fills the cache that it reads

Forward = Callable[..., Any]  # of the transformer


def limit_guidance(transformer: Any, plain: Forward, is_guided: Callable[[], bool]) -> AbstractContextManager[None]:
    """Within, a step has a second pass where `is_guided` says so of the present one.

    `plain`: the transformer's forward without passes that are shared; the one that it has serves the guided steps.
    """
    limited = LimitedGuidance(plain, transformer.forward, is_guided)
    return overridden(transformer, "forward", limited.forward)


class LimitedGuidance:
    """The calls of one pipeline. `plain`, `guided`: what computes those of steps without and with a second pass."""

    def __init__(self, plain: Forward, guided: Forward, is_guided: Callable[[], bool]):
        self.plain, self.guided, self.is_guided = plain, guided, is_guided
        self.latents: Any = None  # of an unguided step's first pass, by which its second one is known
        self.result: Any = None

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """What the transformer would return; for the second call of an unguided step what its first one has."""
        latents, result, self.latents, self.result = self.latents, self.result, None, None
        if self.is_guided():
            return self.guided(*args, **inputs)
        if latents is not None and inputs.get("hidden_states") is latents:
            if FILLS_CACHE.items() <= inputs.items():
                self.plain(*args, **inputs)
            return result
        self.latents, self.result = inputs.get("hidden_states"), self.plain(*args, **inputs)
        return self.result
