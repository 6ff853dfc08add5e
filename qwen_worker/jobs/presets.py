"""Presets: the steps and guidance of jobs that set none, which presets an endpoint serves, and why not another. Pure.

`quality` is the model as released. `balanced` takes fewer steps, and a step cache (`step_cache.py`) where the model has
one. `fast` takes a few-step LoRA and no guidance. Knows nothing of how a picture is drawn.
"""

import math
from collections.abc import Callable
from typing import Protocol, TypedDict

from ..errors import BeyondSchema, InvalidInput
from ..model_settings import Role
from ..preset_settings import Preset, steps_in
from ..settings import Settings
from .few_steps import few_step_loras
from .request import Drawing

# The step cache predicts 12 of balanced's 30 steps, so that the transformer computes about a third of quality's.
# `python -m benchmarks quality` measures what that does to the pictures.
STEPS = {Preset.QUALITY: 50, Preset.BALANCED: 30}
GUIDANCE = {Preset.QUALITY: 4.0, Preset.BALANCED: 4.0, Preset.FAST: 1.0}
# The schedule for which few-step LoRAs are distilled: https://github.com/ModelTC/Qwen-Image-Lightning
FEW_STEP_SCHEDULER = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
FAST_LORAS = {"generate": "QWEN_IMAGE_FAST_LORA", "edit": "QWEN_EDIT_FAST_LORA"}
MODELS = {"generate": "QWEN_IMAGE_MODEL", "edit": "QWEN_EDIT_MODEL"}


class Adaptable(Protocol):
    """A checkpoint as presets and LoRAs see it. `adaptable`: whether LoRAs and step caches know its transformer."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def adaptable(self) -> bool: ...


class PresetReport(TypedDict):
    """The presets of one model, as `health` shows them."""

    served: list[str]
    default: str  # the preset of jobs that name none
    reasons: dict[str, str]  # by preset, why it is not served


class Presets:
    """The presets of one endpoint; without settings, of one that has every default.

    `released(model)`: the checkpoint that a model's name alone tells, None where the name tells nothing.
    `is_missing(source)`: whether the source names a file or folder of this machine that is not there.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        released: Callable[[str], Adaptable | None] = lambda model: None,
        is_missing: Callable[[str], bool] = lambda source: False,
    ):
        self.settings = settings or Settings.model_construct()
        self.released, self.is_missing = released, is_missing

    def fast_lora(self, role: str) -> str | None:
        """The source of the few-step LoRA for the role's model, None where the settings name none."""
        return getattr(self.settings, FAST_LORAS[role])

    def apply(self, request: Drawing) -> Drawing:
        """The request with its preset, and with the steps and guidance of the preset, or of a few-step LoRA that it
        brings, where it sets none itself.

        Raises `InvalidInput` for a preset that the endpoint does not serve.
        """
        role, few = Role.of(request.task), few_step_loras(request)
        if request.preset is None:
            # A few-step LoRA of the job's own stands for the endpoint's, and leaves nothing for a step cache.
            default = Preset.QUALITY if few else self.settings.QWEN_PRESET
            preset = Preset.QUALITY if self.obstacle(default, role) else default
        else:
            preset = Preset(request.preset)
            if reason := self.obstacle(preset, role):
                sentence = f"preset '{preset.value}' is not served for {request.task} here: {reason}"
                raise InvalidInput(sentence, BeyondSchema.ENDPOINT)
        values = self.values(preset, role)
        if few and preset is not Preset.FAST:
            values = {"num_inference_steps": next(iter(few.values())), "guidance_scale": GUIDANCE[Preset.FAST]}
        update = {name: value for name, value in values.items() if name not in request.model_fields_set}
        return request.model_copy(update={"preset": preset.value, **update})

    def values(self, preset: Preset, role: str) -> dict[str, float]:
        """The steps and guidance of a preset that is served, in this order, by the names of their fields."""
        return {"num_inference_steps": self.steps(preset, role), "guidance_scale": GUIDANCE[preset]}

    def warnings_of(self, request: Drawing) -> list[str]:
        """What of a request that `apply` has completed does not fit the few-step LoRA of preset fast."""
        if request.preset != Preset.FAST:
            return []
        values = self.values(Preset.FAST, Role.of(request.task))
        steps, guidance = values.values()
        words = f"preset 'fast' draws by a few-step LoRA, made for {steps} steps at guidance_scale {guidance:g}"
        own = {name: getattr(request, name) for name in values}
        return [f"{words}; {name} is {own[name]:g}" for name, value in values.items() if own[name] != value]

    def steps(self, preset: Preset, role: str) -> int:
        """The number of steps of a preset that is served."""
        if preset is not Preset.FAST:
            return STEPS[preset]
        source = self.fast_lora(role)
        steps = (source and steps_in(source)) or self.settings.QWEN_FAST_STEPS
        assert steps, "the settings refuse a few-step LoRA whose steps neither its name nor QWEN_FAST_STEPS tells"
        return steps

    def obstacle(self, preset: Preset, role: str, checkpoint: Adaptable | None = None) -> str | None:
        """Why the role's model does not draw by the preset, as far as that is known before anything is fetched.

        `checkpoint`: the model's, where it is known already. None: the preset is served.
        """
        if preset is not Preset.FAST:
            return None
        source = self.fast_lora(role)
        if not source:
            return f"{FAST_LORAS[role]} names no few-step LoRA"
        if self.is_missing(source):
            return f"the file that {FAST_LORAS[role]} names is not there"
        checkpoint = checkpoint or self.released(getattr(self.settings, MODELS[role]))
        if checkpoint and not checkpoint.adaptable:
            return f"no LoRA can be applied to a {checkpoint.class_name}"
        return None

    def report(self, located: Callable[[str], Adaptable | None]) -> dict[str, PresetReport]:
        """For `health`, by role. `located(role)`: the role's checkpoint, None before it is known."""
        reports: dict[str, PresetReport] = {}
        for role in filter(self.settings.QWEN_TASKS.__contains__, FAST_LORAS):
            reasons = {preset: self.obstacle(preset, role, located(role)) for preset in Preset}
            default = self.settings.QWEN_PRESET
            reports[role] = {
                "served": [preset.value for preset in Preset if not reasons[preset]],
                "default": Preset.QUALITY.value if reasons[default] else default.value,
                "reasons": {preset.value: reason for preset, reason in reasons.items() if reason},
            }
        return reports


def require_adaptable(request: Drawing, checkpoint: Adaptable | None) -> None:
    """Refuse LoRAs, and the preset that is made of one, where the checkpoint's transformer takes none."""
    if checkpoint and not checkpoint.adaptable and (request.loras or request.preset == Preset.FAST):
        field = "loras" if request.loras else f"preset '{request.preset}'"
        sentence = f"{field} is not served by {checkpoint.name}: no LoRA can be applied to a {checkpoint.class_name}"
        raise InvalidInput(sentence, BeyondSchema.ENDPOINT)
