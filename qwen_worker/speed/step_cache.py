"""The step cache of preset `balanced`: the transformer's output is predicted in every second step of a schedule.

TaylorSeer (https://arxiv.org/abs/2503.06923) in diffusers' lite form: the blocks are skipped, and what `proj_out` puts
out is continued along its last difference. A step's number alone decides whether it is predicted: a picture does not
depend on the others of its call, and no step waits for the card. Each of guidance's two passes has its own history; one
that begins in a later step first computes a few steps of its own, and then those that the other one computes. Why
no other cache: first-block caching decides by the mean over a call's rows, waits for the card in every pass, and drew
worse on the tiny checkpoint for as many computed steps (`python -m benchmarks caches`); MagCache needs ratios that are
measured on each checkpoint.

Imports diffusers inside functions. Knows nothing of jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

FIRST_STEPS = 6  # that are computed before the first predicted one: they decide the picture's layout
INTERVAL = 2  # steps, of which one is computed


FIRST_PASS = "cond"  # of a step, by the pipelines' name for it; on a second card none is


class CachedSteps(NamedTuple):
    """A picture's steps that a cache serves: how many; `guided_from`: the first with guidance's second pass."""

    drawn: int
    guided_from: int = 0


@contextmanager
def predict_steps(transformer: Any, steps: CachedSteps) -> Iterator[None]:
    """Within, the transformer predicts what it can of the steps; then it is as it was, whatever happens."""
    import torch
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

    # One computed step fewer at the start of an odd schedule makes its last step, which decides the finest details, a
    # computed one.
    first = FIRST_STEPS if steps.drawn % 2 == 0 else FIRST_STEPS - 1
    transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=INTERVAL,
            disable_cache_before_step=first,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
    )
    count_from(transformer, steps.guided_from % INTERVAL)
    try:
        yield
    finally:
        transformer.disable_cache()
        for module in transformer.modules():
            if hasattr(module, "_diffusers_hook") and not module._diffusers_hook.hooks:
                remove_leftovers(module)


def count_from(transformer: Any, step: int) -> None:
    """Have the histories of second passes count their steps from this one: diffusers has all begin with 0."""
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook

    hooks = [hook for module in transformer.modules() if hasattr(module, "_diffusers_hook")
             for hook in module._diffusers_hook.hooks.values()]  # fmt: skip
    for hook in hooks:
        if step and isinstance(hook, TaylorSeerCacheHook):
            states: Any = hook.state_manager
            states.get_state = partial(state_of_pass, states, states.get_state, step)


def state_of_pass(states: Any, get_state: Callable[[], Any], step: int) -> Any:
    """The history of the present pass, which is about to count its next step."""
    state = get_state()
    if state.current_step < 0 and states.context.name != FIRST_PASS:
        state.current_step += step
    return state


def remove_leftovers(module: Any) -> None:
    """Remove what diffusers leaves of a hook that is gone: a `forward` of the module's own that equals its class's."""
    own = vars(module).get("forward")
    if own is not None and getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    del module._diffusers_hook
