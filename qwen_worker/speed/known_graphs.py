"""Calls of a compiled function that torch need not check: while a picture is drawn, the first of their kind was.

Torch may have several graphs of a function. Before each call it looks for one that fits (its guards): it compares the
tensors, and each module below a block, what the modules hold, and what the code reads of the process. With its way to
the graph, that is about a fifth of what a call takes the host (`python -m benchmarks guards`), 60 times a pass. In the
steps of a picture all of this stays as it is but for the tensors. So torch looks once for each block and each kind of
tensors, and chooses or compiles the graph; the next call of the kind goes to the same graph at once, and its result is
the same to the bit. A call of another kind, with other sizes, another dtype or a mask, is torch's to check again. With
a picture all that was found is forgotten: LoRAs, weights and speed-ups change between pictures.

Torch has no public call that tells its graphs; where the private one is missing, torch checks every call. Imports
torch: import it inside functions. Knows nothing of blocks, nor of how they are compiled.
"""

import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo import eval_frame

from ..memory.failures import Failure, attempt

Function = Callable[..., Any]


class KnownGraphs:
    """A compiled function, to be called as it; `compiled`: torch's, `plain`: what it was compiled from.

    `report_failure` is called with the reason when torch does not tell its graphs: it checks every call from then on.
    """

    def __init__(self, compiled: Function, plain: Function, report_failure: Callable[[str], None]):
        self.compiled, self.plain, self.report_failure = compiled, plain, report_failure
        self.found: dict[Hashable, Function] | None = None  # by the kinds of calls, while a picture is drawn
        self.is_off = False
        if not hasattr(eval_frame, "_debug_get_cache_entry_list"):
            self.turn_off("this torch does not tell which graph has served a call")

    def turn_off(self, reason: str) -> None:
        self.is_off = True
        self.report_failure(reason)

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Within, nothing changes but the arguments: torch checks one call of each kind."""
        before, self.found = self.found, {}
        try:
            yield
        finally:
            self.found = before

    def __call__(self, owner: Any, **inputs: Any) -> Any:
        """What the function returns for its first argument and others by their names. Raises what torch raises."""
        if self.found is None or self.is_off:
            return self.compiled(owner, **inputs)
        kind = kind_of(owner, inputs)
        graph = self.found.get(kind)
        if graph is not None:
            return graph(owner, **inputs)
        results = self.compiled(owner, **inputs)
        found = attempt(lambda: self.last_used(owner, inputs))
        if isinstance(found, Failure):
            self.turn_off(found.reason)
        elif found:
            self.found[kind] = found
        return results

    def last_used(self, owner: Any, inputs: Mapping[str, Any]) -> Function | None:
        """The graph that has just served this call; None where torch says of another one that it was used last."""
        graphs = eval_frame._debug_get_cache_entry_list(self.plain.__code__)
        given = inspect.signature(self.plain).bind(owner, **inputs)
        given.apply_defaults()
        if not graphs or not graphs[0].guard_manager.check(dict(given.arguments)):
            return None
        plain: Any = self.plain
        return types.FunctionType(
            graphs[0].code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
        )


def kind_of(owner: Any, inputs: Mapping[str, Any]) -> Hashable:
    """All that a graph may depend on of a call, beside what stays as it is while a picture is drawn."""
    places: dict[int, int] = {}
    facts = tuple((name, facts_of(value, places)) for name, value in inputs.items())
    return owner, torch.is_grad_enabled(), facts


def facts_of(value: Any, places: dict[int, int]) -> Hashable:
    """What a graph may depend on of an argument: of a tensor not its numbers, but which of the call's tensors it is.

    `places`: of the call's tensors so far, by their ids.
    """
    if isinstance(value, torch.Tensor):
        place = places.setdefault(id(value), len(places))
        return type(value), value.dtype, value.device, value.requires_grad, value.shape, value.stride(), place
    if isinstance(value, (tuple, list)):
        return type(value), *(facts_of(part, places) for part in value)
    if isinstance(value, dict):
        return type(value), *((name, facts_of(part, places)) for name, part in value.items())
    # Of an object of any other class nothing is known, and no two calls are alike.
    return (type(value), value) if isinstance(value, (bool, int, float, str, type(None))) else object()
