"""What is compiled while a model is loaded: the graphs of what the endpoint is set up to draw, and no others.

Pictures as they are, and with the endpoint's own LoRAs where every picture has them (`speedups.py`); then pictures with
other LoRAs, as far as such jobs may come and are drawn compiled. Jobs then wait for no compiler. Imports no torch
itself. Knows nothing of where graphs are kept.
"""

import inspect
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ..memory import cuda
from ..memory.failures import Failure, attempt
from ..memory.footprint import UNCOMPILED_DENOISE, Plan
from ..model_settings import Precision, Speedup
from ..settings import Settings

if TYPE_CHECKING:
    from ..model.modulation import ModulationTable
    from .compiled import Comparison
    from .speedups import Speed


class CompiledLoras(IntEnum):
    """With which LoRAs beside those of every picture there are compiled blocks; each has those before it too."""

    NONE = 0
    PRESET = 1  # the one of preset `fast`, without guidance
    JOBS = 2  # those of jobs


def wanted_loras(settings: Settings, precision: Precision, has_preset_lora: bool) -> CompiledLoras:
    """The LoRAs for which blocks are to be compiled, beside those of every picture.

    A job's own are where blocks are fp8 or int8, which are much slower when they are not compiled. In bfloat16 the
    graphs would lengthen each start by more than most endpoints' jobs with LoRAs gain.
    """
    if settings.QWEN_LORA_MB and precision in UNCOMPILED_DENOISE:
        return CompiledLoras.JOBS
    return CompiledLoras.PRESET if has_preset_lora else CompiledLoras.NONE


def input_pictures(pipe: Any) -> int:
    """How many input pictures a usual job of the pipeline has."""
    return int("image" in inspect.signature(pipe.__call__).parameters)


def usual_passes(
    settings: Settings, precision: Precision, references: int, shares_passes: bool
) -> list[tuple[int, int]]:
    """(rows, tokens of text) of the passes that usual jobs take. `shares_passes`: whether guidance's are one."""
    from .compiled import SHORT_TEXT, WARM_TEXT

    if references:  # the passes of edits are too large to be shared, and their texts have the input pictures in them
        return [(1, WARM_TEXT)]
    several = settings.QWEN_BATCH > 1 or shares_passes
    short = precision is Precision.INT8  # in which short texts have a graph of their own
    return [(1, WARM_TEXT)] + [(2, WARM_TEXT)] * several + [(1, SHORT_TEXT)] * short


def compile_loras(
    speed: "Speed",
    wanted: CompiledLoras,
    pipe: Any,
    plan: Plan,
    settings: Settings,
    table: "ModulationTable | None",
    example: AbstractContextManager[None],
    compare: "Comparison | None",
) -> "Speed":
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
