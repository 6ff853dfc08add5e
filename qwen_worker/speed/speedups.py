"""Which speed-ups a loaded pipeline has, why it lacks the others, and which of them are on while a job is drawn.

Each speed-up is a module of its own; the choice is made here. With `QWEN_SPEEDUPS=auto` a card has those whose worth
published measurements show, and a CPU has none: its pictures stay bit-equal to stock's. A speed-up that the setting
names is used wherever it can be. Imports what touches tensors inside functions. Knows nothing of jobs.
"""

import inspect
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..log import log_line
from ..memory.footprint import Plan
from ..memory.machine import Machine
from ..settings import Precision, Settings, Speedup, hub_home
from . import step_cache

if TYPE_CHECKING:
    from ..model.modulation import ModulationTable
    from .compile_store import CompileStore
    from .compiled import CompiledBlocks

ON = "on"
# Major compute capabilities of the cards whose fastest attention is cuDNN's: Hopper, data-centre Blackwell.
CUDNN_CAPABILITIES = (9, 10)


@dataclass(frozen=True)
class Speed:
    """The speed-ups of one pipeline. `states`: for each speed-up `on`, or why it is off."""

    states: dict[Speedup, str] = field(default_factory=dict[Speedup, str])
    transformer: Any = None
    blocks: "CompiledBlocks | None" = None
    store: "CompileStore | None" = None  # of the code that the blocks are compiled to

    def has(self, speedup: Speedup) -> bool:
        return self.states.get(speedup) == ON

    @contextmanager
    def drawing(self, compiled: bool = True, separate_passes: bool = False, cached_steps: int = 0) -> Iterator[None]:
        """Within, a job is drawn; at its end what was compiled for it is kept.

        `compiled`: by compiled blocks, where there are any. `separate_passes`: guidance's passes stay two, whatever the
        picture's size. `cached_steps`: those of the schedule if a step cache serves it, 0 if none does.
        """
        with ExitStack() as stack:
            stack.enter_context(self.attention_order())
            if cached_steps:
                stack.enter_context(step_cache.predict_steps(self.transformer, cached_steps))
            if self.has(Speedup.GUIDANCE) and not separate_passes:
                from . import guidance

                stack.enter_context(guidance.share_passes(self.transformer))
            if self.blocks and not compiled:
                stack.enter_context(self.blocks.pause())
            yield
        if self.store:
            self.store.save()

    def attention_order(self) -> AbstractContextManager[object]:
        """Within, attention is computed by the fastest kernel. Compiled blocks keep the order they were traced in."""
        if not self.has(Speedup.ATTENTION):
            return nullcontext()
        from .attention import prefer_cudnn

        return prefer_cudnn()

    def __str__(self) -> str:
        return ", ".join(speedup.value for speedup in self.states if self.has(speedup)) or "none"


def decide(plan: Plan, asked: frozenset[Speedup] | None, capability: tuple[int, int] | None) -> dict[Speedup, str]:
    """For each speed-up `on`, or why it is off.

    `asked`: the speed-ups that the setting names, None where it leaves the choice; `capability`: the card's compute
    capability, (major, minor), None on a CPU.
    """
    is_20b = all(model.parts for model in plan.models)
    states: dict[Speedup, str] = {}
    for speedup in Speedup:
        if not is_20b:
            states[speedup] = "made for the 20B architecture"
        elif asked is not None and speedup not in asked:
            states[speedup] = "not in QWEN_SPEEDUPS"
        elif asked is None and plan.device == "cpu":
            states[speedup] = "a CPU has none by itself: its pictures stay bit-equal to stock's"
        elif speedup is Speedup.ATTENTION and (capability or (0, 0))[0] not in CUDNN_CAPABILITIES:
            states[speedup] = "torch's own order is the best that is known for this card"
        else:
            states[speedup] = ON
    return states


def apply(
    pipe: Any, plan: Plan, settings: Settings, machine: Machine, table: "ModulationTable | None", name: str = ""
) -> Speed:
    """Give a loaded pipeline the speed-ups that it can have. `name`: the checkpoint's, for the log."""
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


def may_compile(asked: frozenset[Speedup] | None) -> bool:
    """Whether the setting leaves the compiling of blocks to a card. `asked`: as `decide` has it."""
    return asked is None or Speedup.COMPILE in asked


def has_compiler(device: str) -> bool:
    """Whether torch's compiler finds its own: Triton compiles launchers in C, and kernels for a CPU are C++."""
    variable, programs = ("CXX", ("g++",)) if device == "cpu" else ("CC", ("gcc", "clang"))
    return bool(os.environ.get(variable)) or any(map(shutil.which, programs))


def compile_blocks(
    speed: Speed,
    pipe: Any,
    settings: Settings,
    card: str | None,
    precision: Precision,
    table: "ModulationTable | None",
    name: str,
) -> Speed:
    """The speed-ups with compiled blocks, taken from an earlier start's store where that has them."""
    import torch

    from ..model import quantization
    from . import compile_store
    from .compiled import SHORT_TEXT, WARM_TEXT, CompiledBlocks

    def report_failure(reason: str) -> None:
        speed.states[Speedup.COMPILE] = reason
        log_line(None, "WARN", f"{name}: the blocks are drawn without compiling from now on: {reason}")

    folder = settings.QWEN_COMPILED_FOLDER or hub_home() / "qwen-image-compiled"
    store = compile_store.process_store(folder, round(settings.QWEN_COMPILED_MB * compile_store.MB), card)
    blocks = CompiledBlocks(pipe.transformer, report_failure)
    references = int("image" in inspect.signature(pipe.__call__).parameters)
    passes = [(1, WARM_TEXT)]
    if speed.has(Speedup.GUIDANCE) and not references:  # the passes of edits are too large to be shared
        passes += [(2, WARM_TEXT)]
    if precision is Precision.INT8:
        quantization.pad_few_rows()
        if not references:  # an edit's text is never short: it has the input pictures in it
            passes += [(1, SHORT_TEXT)]  # short texts have a graph of their own
    # torch chooses the attention's kernel while it traces a graph, and its cache's keys do not say which one.
    torch.compiler.config.cache_key_tag = "cudnn first" if speed.has(Speedup.ATTENTION) else ""
    with speed.attention_order():
        blocks.warm(table, references, passes)
    store.save()
    return replace(speed, blocks=blocks, store=store)
