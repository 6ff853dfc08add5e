"""The schedules on which few-step LoRAs draw: the scheduler's configuration, and the sigmas before its shift. Pure.

Each LoRA is distilled for one of them, and draws blurred or overdrawn pictures on another. Which one it is follows from
the checkpoint's pipeline class, and for Qwen-Image-2.1 from the LoRA's maker. Knows nothing of how a picture is drawn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .presets import FEW_STEP_SCHEDULER

CLASS_2_1 = "QwenImage21Pipeline"
# The checkpoint's own shift, which follows from the size, and no stretch to its `shift_terminal`:
# https://huggingface.co/lightx2v/Qwen-Image-2.1-Lightning
SCHEDULER_2_1 = {"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": None}
VIGGLE = "viggle"  # a word of all names of https://huggingface.co/Viggle/Qwen-Image-2.1-viggle-turbo
# Its last steps are the same whatever the number of steps; the first ones are spread evenly over the rest.
VIGGLE_END = (0.875, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class FewStepSchedule:
    """`scheduler`: what changes of its configuration. `sigmas`: before the scheduler's shift, without the final 0;
    none where the pipeline's own evenly spaced ones are meant.
    """

    scheduler: Mapping[str, Any]
    sigmas: list[float] = field(default_factory=list[float])


def schedule_of(class_name: str, sources: Iterable[str], steps: int) -> FewStepSchedule:
    """The schedule of a picture in so many steps. `sources`: the paths of the LoRAs that it is drawn with."""
    if class_name != CLASS_2_1:
        return FewStepSchedule(FEW_STEP_SCHEDULER)
    is_viggle = any(VIGGLE in source.lower() for source in sources)
    return FewStepSchedule(SCHEDULER_2_1, viggle_sigmas(steps) if is_viggle else [])


def viggle_sigmas(steps: int) -> list[float]:
    """As the maker gives them for 4 to 9 steps; [] for fewer steps than those that are always the same."""
    if steps < len(VIGGLE_END):
        return []
    if steps == len(VIGGLE_END):  # of its first version
        return [1.0, *VIGGLE_END[1:]]
    first = steps - len(VIGGLE_END)  # steps from 1 down to, and without, the first that is always the same
    return [1 - (1 - VIGGLE_END[0]) * k / first for k in range(first)] + list(VIGGLE_END)
