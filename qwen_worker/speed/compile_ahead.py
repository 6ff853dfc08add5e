"""For what blocks are compiled while a model is loaded: for what the endpoint is set up to draw, and nothing else.

Pictures as they are, or with the endpoint's own LoRAs where every picture has them; then pictures with other LoRAs, as
far as such jobs may come and are drawn compiled. Jobs then wait for no compiler. Imports torch inside functions. Knows
nothing of how blocks are compiled (`speedups.py`).
"""

import inspect
from enum import IntEnum
from typing import Any

from ..memory.footprint import UNCOMPILED_DENOISE
from ..model_settings import Precision
from ..settings import Settings


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
