"""Which speed-ups a loaded pipeline has, why it lacks the others, and which of them are on while a job is drawn.

Each speed-up is a module of its own; the choice is made here. With `QWEN_SPEEDUPS=auto` a card has those whose worth
published measurements show, and a CPU has none: its pictures stay bit-equal to stock's. A speed-up that the setting
names is used wherever it can be. Imports what touches tensors inside functions. Knows nothing of jobs.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..log import log_line
from ..memory import cuda
from ..memory.failures import Failure, attempt
from ..memory.footprint import Plan
from ..memory.machine import Machine
from ..model_settings import Precision, Speedup
from ..settings import Settings
from . import step_cache
from .compile_ahead import CompiledLoras, input_pictures, usual_passes

if TYPE_CHECKING:
    from ..model.modulation import ModulationTable
    from .compile_store import CompileStore
    from .compiled import Comparison, CompiledBlocks

ON = "on"
# Names of what may fail beside the speed-ups. The last: that torch need not check each call of a compiled block.
INT8_PRODUCT, STEP_CACHE, COMPILED_LORAS, KNOWN_GRAPHS = "int8 product", "step cache", "compiled LoRAs", "known graphs"
# What compiled blocks cannot do without, or was traced into their graphs unseen by torch, which would take them still.
COMPILED_IN = (Speedup.ROTARY, Speedup.ATTENTION)
# Compute capabilities of the cards whose fastest attention is cuDNN's: Hopper, data-centre Blackwell. On (10, 3), the
# B300, cuDNN could not build its plans with CUDA 12.8.
CUDNN_CAPABILITIES = (9, 0), (10, 0)
CUDNN_FIRST_ABOVE = 91500  # the cuDNN above which torch for CUDA 13 itself asks cuDNN first on these cards


@dataclass(frozen=True)
class Speed:
    """The speed-ups of one pipeline. `states`: for each speed-up `on`, or why it is off.

    `failures`: by the name of each that has failed, why.
    """

    states: dict[Speedup, str] = field(default_factory=dict[Speedup, str])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    transformer: Any = None
    blocks: "CompiledBlocks | None" = None
    store: "CompileStore | None" = None  # of the code that the blocks are compiled to
    loras: CompiledLoras = CompiledLoras.NONE

    def has(self, speedup: Speedup) -> bool:
        return self.states.get(speedup) == ON

    def stand_down(self, speedup: Speedup, reason: str) -> None:
        """Draw without one from now on, and without compiled blocks if they have it in them.

        Without `gelu`, torch compiles the blocks anew when they are used next: `compile_again` has it do so at once.
        """
        if speedup in COMPILED_IN and self.has(Speedup.COMPILE):
            self.stand_down(Speedup.COMPILE, reason)
        if speedup is Speedup.COMPILE and self.blocks:
            self.blocks.is_off = True
        if speedup is Speedup.ROTARY and self.has(speedup):
            from . import attention

            attention.use_stock_rotary(self.transformer)
        if speedup is Speedup.GELU and self.has(speedup):
            from . import gelu

            gelu.use_stock_products(self.transformer)
        self.states[speedup] = self.failures[speedup.value] = reason

    def stand_down_loras(self, reason: str) -> None:
        """Draw with LoRAs without compiled blocks from now on."""
        self.failures[COMPILED_LORAS] = reason
        log_line(None, "WARN", f"LoRAs are drawn without compiled blocks from now on: {reason}")

    def stand_all_down(self, reason: str, cached: bool = False) -> list[str]:
        """Draw as the libraries do from now on; the names of those that were on. `cached`: a step cache was, too."""
        names = [speedup for speedup in self.states if self.has(speedup)]
        for speedup in names:
            self.stand_down(speedup, reason)
        if cached:
            self.failures[STEP_CACHE] = reason
        return [*(speedup.value for speedup in names), *([STEP_CACHE] if cached else [])]

    def use_step_cache_again(self) -> None:
        """Have later jobs drawn with the step cache again: what it stood down for was no fault of it."""
        self.failures.pop(STEP_CACHE, None)

    @contextmanager
    def drawing(
        self,
        compiled: bool = True,
        separate_passes: bool = False,
        cached_steps: step_cache.CachedSteps | None = None,
        lora_rank: int = 0,
    ) -> Iterator[None]:
        """Within, a job is drawn; at its end what was compiled for it is kept.

        `compiled`: by compiled blocks, where there are any. `lora_rank`: to which the picture's LoRAs are padded; where
        their graphs fail, only these stand down. `separate_passes`: guidance's passes stay two, whatever the picture's
        size. `cached_steps`: those of the picture if a step cache serves it.
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
            if self.blocks:
                stack.enter_context(self.blocks.compiled.remembered())
            if self.blocks and lora_rank:
                stack.enter_context(self.blocks.try_with(self.stand_down_loras))
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


def decide(
    plan: Plan, asked: frozenset[Speedup] | None, capability: tuple[int, int] | None, cudnn_first: bool = False
) -> dict[Speedup, str]:
    """For each speed-up `on`, or why it is off.

    `asked`: the speed-ups that the setting names, None where it leaves the choice; `capability`: the card's compute
    capability, (major, minor), None on a CPU; `cudnn_first`: torch itself asks cuDNN first where that is the fastest.
    """
    is_20b = all(model.is_20b for model in plan.models)
    states: dict[Speedup, str] = {}
    for speedup in Speedup:
        if not is_20b:
            states[speedup] = "made for the 20B architecture"
        elif asked is not None and speedup not in asked:
            states[speedup] = "not in QWEN_SPEEDUPS"
        elif asked is None and plan.device == "cpu":
            states[speedup] = "a CPU has none by itself: its pictures stay bit-equal to stock's"
        elif speedup is Speedup.ATTENTION and capability not in CUDNN_CAPABILITIES:
            states[speedup] = "torch's own order is the best that is known for this card"
        elif speedup is Speedup.ATTENTION and cudnn_first:
            states[speedup] = "this torch asks cuDNN first by itself on this card"
        elif speedup is Speedup.GELU and plan.device == "cpu":
            states[speedup] = "a CPU has no product with this activation"
        elif speedup is Speedup.GELU and plan.precision is not Precision.BF16:
            states[speedup] = "quantized matrices have no product with an activation"
        else:
            states[speedup] = ON
    return states


def asks_cudnn_first() -> bool:
    """Whether torch's own order of attention kernels begins with cuDNN's on the cards that it is the fastest on."""
    import torch

    version: int = torch.backends.cudnn.version() or 0
    return (torch.version.cuda or "").startswith("13.") and version > CUDNN_FIRST_ABOVE


def apply(
    pipe: Any,
    plan: Plan,
    settings: Settings,
    machine: Machine,
    table: "ModulationTable | None",
    name: str = "",
    off: Mapping[str, str] | None = None,
) -> Speed:
    """Give a loaded pipeline the speed-ups that it can have; one that fails costs itself and not the pipeline.

    `name`: the checkpoint's, for the log; `off`: by the names of what has failed before, why. Raises
    `CudaSpoiledError`.
    """
    gpu = machine.gpu if plan.device == "cuda" else None
    states = decide(plan, settings.QWEN_SPEEDUPS, gpu and gpu.capability, asks_cudnn_first())
    if states[Speedup.COMPILE] == ON and not has_compiler(plan.device):
        states[Speedup.COMPILE] = "there is no C compiler here, which torch's compiler needs"
    speed = Speed(states, transformer=pipe.transformer)
    if plan.precision is Precision.INT8:
        from ..model import quantization

        # Also for what is not compiled: jobs' own LoRAs, the text encoder.
        changed = attempt(quantization.use_own_int8_product)
        if isinstance(changed, Failure):
            speed.failures[INT8_PRODUCT] = changed.reason
            log_line(None, "WARN", f"{name}: products in int8 are torchao's own: {changed.reason}")
    for speedup in Speedup:
        if speed.has(speedup) and off and speedup.value in off:
            speed.states[speedup] = speed.failures[speedup.value] = off[speedup.value]
    if speed.has(Speedup.GUIDANCE) and input_pictures(pipe):
        speed.states[Speedup.GUIDANCE] = "the passes of edits are too large to be shared"
    if speed.has(Speedup.ROTARY):
        from . import attention

        attention.use_real_rotary(pipe.transformer)
    if speed.has(Speedup.GELU):
        from . import gelu

        if reason := gelu.obstacle() or gelu.use_activated_products(pipe.transformer):
            speed.states[Speedup.GELU] = reason
    if speed.has(Speedup.COMPILE):
        card = gpu and gpu.name
        compiled = attempt(lambda: compile_blocks(speed, pipe, settings, card, plan.precision, table, name))
        if isinstance(compiled, Failure):
            stock_blocks(pipe.transformer)
            speed.stand_down(Speedup.COMPILE, compiled.reason)
            log_line(None, "WARN", f"{name}: the blocks are drawn without compiling: {compiled.reason}")
            cuda.release_unused(plan.device)
        else:
            speed = compiled
    return speed


def may_compile(asked: frozenset[Speedup] | None) -> bool:
    """Whether the setting leaves the compiling of blocks to a card. `asked`: as `decide` has it."""
    return asked is None or Speedup.COMPILE in asked


def stock_blocks(transformer: Any) -> None:
    """Have the transformer's blocks computed by their class's own code."""
    for block in transformer.transformer_blocks:
        vars(block).pop("forward", None)


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
    from . import compile_store
    from .compiled import CompiledBlocks

    def report_failure(reason: str) -> None:
        speed.stand_down(Speedup.COMPILE, reason)
        log_line(None, "WARN", f"{name}: the blocks are drawn without compiling from now on: {reason}")

    def report_checks(reason: str) -> None:
        speed.failures[KNOWN_GRAPHS] = reason
        log_line(None, "WARN", f"{name}: torch checks every call of a compiled block: {reason}")

    max_bytes = round(settings.QWEN_COMPILED_MB * compile_store.MB)
    store = compile_store.process_store(compile_store.folder(settings), max_bytes, card)
    speed = replace(speed, blocks=CompiledBlocks(pipe.transformer, report_failure, report_checks), store=store)
    warm_blocks(speed, pipe, settings, precision, table)
    return speed


def warm_blocks(
    speed: Speed,
    pipe: Any,
    settings: Settings,
    precision: Precision,
    table: "ModulationTable | None",
    compare: "Comparison | None" = None,
) -> None:
    """Have the blocks compiled for usual jobs. `compare`: tells why a block's results are wrong."""
    import torch

    assert speed.blocks
    references = input_pictures(pipe)
    passes = usual_passes(settings, precision, references, shares_passes=speed.has(Speedup.GUIDANCE))
    # torch chooses the attention's kernel while it traces a graph, and its cache's keys do not say which one.
    torch.compiler.config.cache_key_tag = "cudnn first" if speed.has(Speedup.ATTENTION) else ""
    with speed.attention_order():
        speed.blocks.warm(table, references, passes, compare)
    if speed.store:
        speed.store.save()


def compile_again(
    speed: Speed,
    pipe: Any,
    plan: Plan,
    settings: Settings,
    table: "ModulationTable | None",
    compare: "Comparison | None",
) -> None:
    """Have the blocks compiled as they are now, without a speed-up that has stood down since; else stand down too.

    Raises `CudaSpoiledError`.
    """
    compiled = attempt(lambda: warm_blocks(speed, pipe, settings, plan.precision, table, compare))
    if isinstance(compiled, Failure):
        speed.stand_down(Speedup.COMPILE, compiled.reason)
        cuda.release_unused(plan.device)


def compile_loras(
    speed: Speed,
    wanted: CompiledLoras,
    pipe: Any,
    plan: Plan,
    settings: Settings,
    table: "ModulationTable | None",
    example: AbstractContextManager[None],
    compare: "Comparison | None",
) -> Speed:
    """The speed-ups with blocks that are compiled for the wanted LoRAs too; what fails stands down.

    `example`: within, the transformer has padded LoRAs; `compare`: tells why a block's results with them are wrong.
    Raises `CudaSpoiledError`.
    """
    blocks = speed.blocks
    if not wanted or not blocks or blocks.is_off:
        return speed
    shares_passes = wanted is CompiledLoras.JOBS and speed.has(Speedup.GUIDANCE)
    references = input_pictures(pipe)
    passes = usual_passes(settings, plan.precision, references, shares_passes)

    def warm() -> None:
        with speed.attention_order(), example, blocks.try_with(speed.stand_down_loras):
            blocks.warm(table, references, passes, compare)

    warmed = attempt(warm)
    if isinstance(warmed, Failure):
        speed.stand_down_loras(warmed.reason)
        cuda.release_unused(plan.device)
    if speed.store:
        speed.store.save()
    return replace(speed, loras=wanted)
