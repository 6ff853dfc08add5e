"""What the makers of checkpoints say of them: the defaults of jobs, and the licence. The one table of both.

Where the table has no row of a checkpoint, its pipeline class says it: a test holds the classes' rows to the signatures
of the installed diffusers. What a checkpoint's own files say counts before both. Knows nothing of where files lie.
"""

from dataclasses import replace
from typing import Any, cast

from ..errors import LoadError
from ..jobs.defaults import Defaults
from ..network.hub import is_same_repository
from ..preset_settings import steps_in
from .files import Json

APACHE, RESEARCH = "Apache-2.0", "Qwen Research License"
# By pipeline class; a checkpoint of a class that is not here has those of diffusers' other pipelines.
LICENCES_OF_CLASSES = {"QwenImage21Pipeline": RESEARCH}
SIGNATURE = "the defaults of diffusers' {}"
# Of the pipelines' signatures: `num_inference_steps`, `true_cfg_scale`, and `output_resolution` where they have it.
CLASSES: dict[str, tuple[int, float]] = {"QwenImage21Pipeline": (40, 1.0)}
OTHER_CLASSES = (50, 4.0)
README = "its makers' README"
# "Low resolution, low quality, deformed limbs, deformed fingers, oversaturated, waxy, faces without detail, too smooth,
# looks made by an AI. Chaotic composition. Blurred, distorted text."
NEGATIVE_2512 = (
    "低分辨率，低画质，肢体畸形，手指畸形，画面过饱和，蜡像感，人脸无细节，过度光滑，画面具有AI感。构图混乱。"
    "文字模糊，扭曲。"
)
FORTY_STEPS = Defaults(40, 4.0, README)
# By hub id, as the READMEs of QwenLM/Qwen-Image, QwenLM/Qwen-Image-2.1 and FireRedTeam/FireRed-Image-Edit have them.
# 1024 x 1024 is this worker's size for the 20B models: their makers' sizes are a job's `size: 1K`.
MAKERS = {
    "Qwen/Qwen-Image": Defaults(50, 4.0, README),
    "Qwen/Qwen-Image-2512": Defaults(50, 4.0, README, negative_prompt=NEGATIVE_2512),
    "Qwen/Qwen-Image-Edit": Defaults(50, 4.0, README),
    "Qwen/Qwen-Image-Edit-2509": FORTY_STEPS,
    "Qwen/Qwen-Image-Edit-2511": FORTY_STEPS,
    "Qwen/Qwen-Image-Layered": Defaults(50, 4.0, README),
    "Qwen/Qwen-Image-2.1": Defaults(40, 1.0, README, size=(2048, 2048)),
    "Qwen/Qwen-Image-2.1-Turbo": Defaults(8, 1.0, "its makers, who distilled it for 8 steps without guidance"),
    "FireRedTeam/FireRed-Image-Edit-1.0": FORTY_STEPS,
    "FireRedTeam/FireRed-Image-Edit-1.1": FORTY_STEPS,
}
LICENCES = dict.fromkeys(MAKERS, APACHE) | {
    "Qwen/Qwen-Image-2.1": RESEARCH, "Qwen/Qwen-Image-2.1-Turbo": RESEARCH,
}  # fmt: skip


def defaults_of(
    class_name: str, name: str, schedule: tuple[float, ...] = (), transformer: str | None = None
) -> Defaults:
    """The defaults of a checkpoint.

    `name`: its hub id, or a folder's; `schedule`: of `read_schedule`; `transformer`: what the one that stands in the
    place of its own is called, None for its own.
    """
    known = find_row(name)
    defaults = MAKERS[known] if known else defaults_of_class(class_name)
    if transformer and (steps := steps_in(transformer)):
        source = f"the name of its transformer, which says {steps} steps"
        return replace(defaults, steps=steps, guidance=1.0, source=source)
    if schedule:
        return replace(defaults, steps=len(schedule), schedule=schedule, source="sample_sigmas in its model_index.json")
    if not known and (steps := steps_in(name)):
        return replace(defaults, steps=steps, guidance=1.0, source=f"its name, which says {steps} steps")
    return defaults


def defaults_of_class(class_name: str) -> Defaults:
    steps, guidance = CLASSES.get(class_name, OTHER_CLASSES)
    return Defaults(steps, guidance, SIGNATURE.format(class_name))


def licence_of(class_name: str, name: str) -> str | None:
    """The licence of a checkpoint; None where it is not known."""
    known = find_row(name)
    return LICENCES[known] if known else LICENCES_OF_CLASSES.get(class_name)


def find_row(name: str) -> str | None:
    """The hub id in the table that is the same repository."""
    return next((hub_id for hub_id in MAKERS if is_same_repository(hub_id, name)), None)


def read_schedule(class_name: str, index: Json) -> tuple[float, ...]:
    """The sigmas that a model_index.json fixes, empty where it fixes none or the class does not read them.

    Raises `LoadError` for what is no falling list of numbers from 1 to above 0.
    """
    sigmas: Any = index.get("sample_sigmas")
    if class_name != "QwenImage21Pipeline" or sigmas is None:
        return ()
    values = cast("list[Any]", sigmas) if isinstance(sigmas, list) else []
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    bounds = [1.0, *numbers, 0.0]
    falls = all(before > after for before, after in zip(bounds[1:-1], bounds[2:], strict=True))
    if len(numbers) != len(values) or not 0 < len(numbers) <= 100 or numbers[0] > 1 or not falls:
        raise LoadError("model_index.json is corrupt: sample_sigmas is no list of falling numbers from 1 to above 0")
    return tuple(numbers)
