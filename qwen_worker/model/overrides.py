"""An attribute of one object in place of its class's, for as long as something is drawn, such as a model's forward.

Blocks may lie within each other, and each gives back what it has found. docs/patches.md lists what is replaced so, and
why. Imports no torch. Knows nothing of what the attributes do.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


@contextmanager
def overridden(owner: Any, name: str, value: Any) -> Generator[None]:
    """Within, this object alone has the value for its attribute of this name."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)


def watching_schedules(scheduler: Any, after: Callable[[], None]) -> AbstractContextManager[None]:
    """Within, `after` is called for every schedule that the scheduler has set, as each call of a pipeline does."""
    stock = scheduler.set_timesteps

    @functools.wraps(stock)  # the pipelines look for `sigmas` in the signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        stock(*args, **kwargs)
        after()

    return overridden(scheduler, "set_timesteps", set_timesteps)
