"""The step cache of preset `balanced`: the transformer's output is predicted in every second step of a schedule.

TaylorSeer (https://arxiv.org/abs/2503.06923) in diffusers' lite form: the blocks are skipped and what `proj_out` puts
out is continued along its last difference. Which steps are predicted is fixed by their number, so a picture does not
depend on those that share its call, nothing is read back from the card in a step, and guidance's two passes have a
history each. First-block caching decides by the mean over a call's rows and waits for the card in every pass, and drew
worse on the tiny checkpoint for as many computed steps; MagCache needs ratios measured on each checkpoint.

Imports diffusers inside functions. Knows nothing of jobs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FIRST_STEPS = 6  # computed before the first is predicted: where the picture's layout is decided
INTERVAL = 2  # of so many steps one is computed


@contextmanager
def predicting(transformer: Any, steps: int) -> Iterator[None]:
    """Within, the transformer predicts what it can of schedules of `steps`; as it was afterwards, whatever happens."""
    import torch
    from diffusers import TaylorSeerCacheConfig

    # The last step is computed: the finest details are decided there.
    first = FIRST_STEPS if steps % 2 == 0 else FIRST_STEPS - 1
    transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=INTERVAL,
            disable_cache_before_step=first,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
    )
    try:
        yield
    finally:
        transformer.disable_cache()
        for module in transformer.modules():
            if hasattr(module, "_diffusers_hook") and not module._diffusers_hook.hooks:
                unhooked(module)


def unhooked(module: Any) -> None:
    """What diffusers leaves of a hook that is gone: the module's own method, bound to it once more."""
    own = vars(module).get("forward")
    if own is not None and getattr(own, "__func__", None) is type(module).forward:
        del module.forward
    del module._diffusers_hook
