"""Which speed-ups a loaded pipeline has, why it lacks the others, and what of them is on while a job is drawn.

Each is a module of its own, here is only the choice. By itself (`QWEN_SPEEDUPS=auto`) a card has those whose worth is
known from published measurements, a CPU has none: there pictures stay bit-equal to stock's. What is asked for by name
is used wherever it can be. Imports what touches tensors inside functions.
"""

import inspect
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from ..log import log_line
from ..memory.footprint import Plan
from ..memory.machine import Machine
from ..settings import Precision, Settings, Speedup, hub_home
from . import step_cache

ON = "on"
CUDNN_CAPABILITIES = (9, 10)  # major, where cuDNN's attention is the fastest: Hopper, data-centre Blackwell


@dataclass(frozen=True)
class Speed:
    """The speed-ups of one pipeline. `states`: of each `on`, or why it is off."""

    states: dict[Speedup, str] = field(default_factory=dict)
    transformer: Any = None
    blocks: Any = None  # the `compiled.CompiledBlocks`
    store: Any = None  # the `compile_store.CompileStore` of what they are compiled to

    def has(self, one: Speedup) -> bool:
        return self.states.get(one) == ON

    @contextmanager
    def drawing(self, compiled: bool = True, apart: bool = False, cached_steps: int = 0) -> Iterator[None]:
        """Within, a job is drawn. `compiled`: by compiled blocks, where there are any; `apart`: guidance's passes stay
        two calls, whatever the size; `cached_steps`: of the schedule that a step cache serves, 0 for none."""
        with ExitStack() as stack:
            stack.enter_context(self.attending())
            if cached_steps:
                stack.enter_context(step_cache.predicting(self.transformer, cached_steps))
            if self.has(Speedup.GUIDANCE) and not apart:
                from . import guidance

                stack.enter_context(guidance.together(self.transformer))
            if self.blocks and not compiled:
                stack.enter_context(self.blocks.paused())
            yield
        if self.store:
            self.store.save()

    def attending(self) -> AbstractContextManager[None]:
        """Within, attention is computed as it is fastest. Compiled blocks keep what they were traced with."""
        if not self.has(Speedup.ATTENTION):
            return nullcontext()
        from .attention import cudnn_first

        return cudnn_first()

    def __str__(self) -> str:
        return ", ".join(one.value for one in self.states if self.has(one)) or "none"


def decide(plan: Plan, asked: frozenset[Speedup] | None, capability: tuple[int, int] | None) -> dict[Speedup, str]:
    """Of each speed-up `on`, or why it is off. `capability`: the card's, None on a CPU."""
    known = all(model.parts for model in plan.models)
    states = {}
    for one in Speedup:
        if not known:
            states[one] = "made for the 20B architecture"
        elif asked is not None and one not in asked:
            states[one] = "not in QWEN_SPEEDUPS"
        elif asked is None and plan.device == "cpu":
            states[one] = "a CPU has none by itself: its pictures stay bit-equal to stock's"
        elif one is Speedup.ATTENTION and (capability or (0, 0))[0] not in CUDNN_CAPABILITIES:
            states[one] = "torch's own order is the best that is known for this card"
        else:
            states[one] = ON
    return states


def apply(pipe: Any, plan: Plan, settings: Settings, machine: Machine, table: Any, name: str = "") -> Speed:
    """Give a pipeline that is loaded what it can have. `table`: its modulation's, or None; `name`: for the log."""
    gpu = machine.gpu if plan.device == "cuda" else None
    states = decide(plan, settings.QWEN_SPEEDUPS, gpu and gpu.capability)
    if states[Speedup.COMPILE] == ON and not has_compiler(plan.device):
        states[Speedup.COMPILE] = "there is no C compiler here, which torch's compiler needs"
    speed = Speed(states, pipe.transformer)
    if speed.has(Speedup.ROTARY):
        from . import attention

        attention.use_real_rotary(pipe.transformer)
    if speed.has(Speedup.COMPILE):
        speed = compile_blocks(speed, pipe, settings, gpu and gpu.name, plan.precision, table, name)
    return speed


def has_compiler(device: str) -> bool:
    """Whether there is what torch.compile calls: Triton a C compiler for its launchers, a CPU's kernels are C++."""
    variable, programs = ("CXX", ("g++",)) if device == "cpu" else ("CC", ("gcc", "clang"))
    return bool(os.environ.get(variable)) or any(map(shutil.which, programs))


def compile_blocks(
    speed: Speed, pipe: Any, settings: Settings, card: str | None, precision: Precision, table: Any, name: str
) -> Speed:
    """The speed-ups with compiled blocks, from what an earlier start has compiled where it can be."""
    import torch

    from ..model import quantization
    from . import compile_store
    from .compiled import SHORT_TEXT, WARM_TEXT, CompiledBlocks

    def tell(why: str) -> None:
        speed.states[Speedup.COMPILE] = why
        log_line(None, "WARN", f"{name}: the blocks are drawn without compiling from now on: {why}")

    folder = settings.QWEN_COMPILED_FOLDER or hub_home() / "qwen-image-compiled"
    store = compile_store.store_of_process(folder, round(settings.QWEN_COMPILED_MB * compile_store.MB), card)
    blocks = CompiledBlocks(pipe.transformer, tell)
    references = int("image" in inspect.signature(pipe.__call__).parameters)
    passes = [(1, WARM_TEXT)]
    if speed.has(Speedup.GUIDANCE) and not references:  # edits are too large for it
        passes += [(2, WARM_TEXT)]
    if precision is Precision.INT8:
        quantization.pad_few_rows()
        if not references:  # an edit's text has its pictures in it
            passes += [(1, SHORT_TEXT)]  # a graph of its own
    # The attention's kernel is chosen as a graph is traced, and torch's keys of what it keeps do not tell of it.
    torch.compiler.config.cache_key_tag = "cudnn first" if speed.has(Speedup.ATTENTION) else ""
    with speed.attending():
        blocks.warm(table, references, passes)
    store.save()
    return replace(speed, blocks=blocks, store=store)
