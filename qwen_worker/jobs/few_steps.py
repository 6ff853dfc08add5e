"""Few-step LoRAs among those that a job names itself, and what of the job has no effect or does not fit them. Pure.

Such a LoRA is distilled for one number of steps on a schedule of its own, without guidance. Published ones have that
number in the names of their files (`Qwen-Image-Lightning-8steps-V1.1.safetensors`); nothing inside of them says it, and
no other LoRA is named so: training runs have hundreds of steps. Knows nothing of how a picture is drawn.
"""

from ..preset_settings import Preset, steps_in
from .defaults import MOST_FEW_STEPS
from .request import Drawing, Generate

KIND = "a few-step LoRA by its name"


def few_step_loras(request: Drawing) -> dict[int, int]:
    """The steps of the few-step LoRAs among the request's, by their places in `loras`."""
    steps = {place: steps_in(lora.path) for place, lora in enumerate(request.loras) if lora.scale > 0}
    return {place: count for place, count in steps.items() if count}


def takes_few_steps(request: Drawing) -> bool:
    """Whether the picture is drawn on the schedule of few-step LoRAs."""
    return request.preset == Preset.FAST or bool(few_step_loras(request))


def warnings_of(request: Drawing, is_distilled: bool = False) -> list[str]:
    """What of a request that its preset has completed has no effect, or makes a worse picture than is meant.

    `is_distilled`: whether few steps without guidance are the checkpoint's own way.
    """
    warnings: list[str] = []
    few = few_step_loras(request)
    for place, steps in few.items():
        if request.num_inference_steps != steps:
            words = f"loras[{place}] is {KIND}, made for {steps} steps"
            warnings.append(f"{words}; num_inference_steps is {request.num_inference_steps}")
        if request.guidance_scale > 1:
            words = f"loras[{place}] is {KIND}, made for guidance_scale 1"
            warnings.append(f"{words}; it is {request.guidance_scale:g}")
    if len(few) + (request.preset == Preset.FAST) > 1:
        others = "another one" if request.preset != Preset.FAST else "that of preset 'fast'"
        warnings.append(f"loras[{max(few)}] is {KIND}, and is added to {others}: one is enough")
    is_few = request.num_inference_steps <= MOST_FEW_STEPS and request.guidance_scale == 1
    if is_few and request.loras and not is_distilled and not takes_few_steps(request):
        warnings.append(
            f"num_inference_steps {request.num_inference_steps} at guidance_scale 1 is for few-step LoRAs, and no name "
            "in loras says a number of steps (as 8steps does): the model's own schedule is used"
        )
    if request.guidance_scale == 1 and (request.negative_prompt or "").strip():
        warnings.append("negative_prompt has no effect at guidance_scale 1")
    if request.limits_guidance:
        warnings += warnings_of_range(request)
    if isinstance(request, Generate) and request.control_image and not request.controlled_steps(request.drawn_steps):
        between = f"control_start {request.control_start:g} and control_end {request.control_end:g}"
        warnings.append(f"between {between} lies none of {request.drawn_steps} steps: control_image has no effect")
    return warnings


def warnings_of_range(request: Drawing) -> list[str]:
    """That the part of the steps that the request gives to guidance has none of them."""
    names = [name for name in ("guidance_start", "guidance_end") if name in request.model_fields_set]
    if request.guidance_scale == 1:
        return [f"{name} has no effect at guidance_scale 1" for name in names]
    if request.guided_steps(request.drawn_steps):
        return []
    between = f"guidance_start {request.guidance_start:g} and guidance_end {request.guidance_end:g}"
    return [f"between {between} lies none of {request.drawn_steps} steps: the picture is drawn without guidance"]
