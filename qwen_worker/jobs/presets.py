"""Presets: the steps and guidance of jobs that set none, which presets an endpoint serves, and why not another. Pure.

`quality` is the model as its makers recommend it (`defaults.py`). `balanced` takes three of five of its steps, and a
step cache (`step_cache.py`) where the model has one. `fast` takes a few-step LoRA and no guidance. A checkpoint that is
distilled for few steps itself has one way to draw, which is `quality`. Knows nothing of how a picture is drawn.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from ..errors import BeyondSchema, InvalidInput
from ..model_settings import Role
from ..preset_settings import Preset, steps_in
from ..settings import Settings
from . import few_steps
from .defaults import Defaults, with_defaults
from .few_steps import few_step_loras
from .request import Drawing
from .values import Warn, ignore

if TYPE_CHECKING:
    from .job import Job

# What a job has as long as its checkpoint is not known: the defaults of the endpoint's default models. The step cache
# predicts 12 of balanced's 30 steps, so that the transformer computes about a third of quality's.
# `python -m benchmarks quality` measures what that does to the pictures.
USUAL = Defaults(50, 4.0, "Qwen-Image's makers")
FAST_GUIDANCE = 1.0
# The schedule for which few-step LoRAs are distilled: https://github.com/ModelTC/Qwen-Image-Lightning
FEW_STEP_SCHEDULER = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
FAST_LORAS = {"generate": "QWEN_IMAGE_FAST_LORA", "edit": "QWEN_EDIT_FAST_LORA"}
MODELS = {"generate": "QWEN_IMAGE_MODEL", "edit": "QWEN_EDIT_MODEL", "layers": "QWEN_LAYERED_MODEL"}


class Adaptable(Protocol):
    """A checkpoint as presets and LoRAs see it. `adaptable`: whether LoRAs and step caches know its transformer."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def adaptable(self) -> bool: ...
    @property
    def defaults(self) -> Defaults: ...


class PresetReport(TypedDict):
    """The presets of one model, as `health` shows them."""

    served: list[str]
    default: str  # the preset of jobs that name none
    reasons: dict[str, str]  # by preset, why it is not served


class Presets:
    """The presets of one endpoint; without settings, of one that has every default.

    `released(model)`: the checkpoint that a model's name alone tells, None where the name tells nothing.
    `is_missing(source)`: whether the source names a file or folder of this machine that is not there.
    `located(role)`: the role's checkpoint once its files are found, None before.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        released: Callable[[str], Adaptable | None] = lambda model: None,
        is_missing: Callable[[str], bool] = lambda source: False,
        located: Callable[[str], Adaptable | None] = lambda role: None,
    ):
        self.settings = settings or Settings.model_construct()
        self.released, self.is_missing, self.located = released, is_missing, located

    def checkpoint(self, role: str) -> Adaptable | None:
        """The role's checkpoint, as far as it is known."""
        return self.located(role) or self.released(getattr(self.settings, MODELS[role]))

    def defaults(self, role: str) -> Defaults:
        """Those of the role's checkpoint; the usual ones as long as it is not known."""
        checkpoint = self.checkpoint(role)
        return checkpoint.defaults if checkpoint else USUAL

    def fast_lora(self, role: str) -> str | None:
        """The source of the few-step LoRA for the role's model, None where the settings name none."""
        return getattr(self.settings, FAST_LORAS[role]) if role in FAST_LORAS else None

    def apply(self, request: Drawing, warn: Warn = ignore) -> Drawing:
        """The request with its preset, and with the steps and guidance of the preset, or of a few-step LoRA that it
        brings, where it sets none itself; and with the other defaults of its checkpoint.

        What is filled in counts as not set still: applied once more when the checkpoint is known, it is that one's.
        `warn` is told of a preset that is another one here. Raises `InvalidInput` for a preset that is not served.
        """
        role, few = Role.of(request.task), few_step_loras(request)
        preset, defaults = self.preset_of(request, bool(few)), self.defaults(role)
        steps, guidance = self.values(preset, role).values()
        if few and preset is not Preset.FAST:
            steps, guidance = next(iter(few.values())), FAST_GUIDANCE
        if defaults.is_distilled and preset is not Preset.QUALITY:
            if "preset" in request.model_fields_set:
                warn(f"preset '{preset.value}' draws as 'quality' does: {self.distillation(role)}")
                request = request.model_copy(update={"preset": Preset.QUALITY.value})
            preset = Preset.QUALITY
        return with_defaults(request, {"preset": preset.value, **defaults.of(request, int(steps), guidance)})

    def preset_of(self, request: Drawing, has_few_step_lora: bool) -> Preset:
        """The preset that the request names, or else the endpoint's. Raises `InvalidInput` for one not served."""
        role = Role.of(request.task)
        if request.preset and "preset" in request.model_fields_set:
            preset = Preset(request.preset)
            if reason := self.obstacle(preset, role):
                sentence = f"preset '{preset.value}' is not served for {request.task} here: {reason}"
                raise InvalidInput(sentence, BeyondSchema.ENDPOINT)
            return preset
        # A few-step LoRA of the job's own stands for the endpoint's, and leaves nothing for a step cache.
        default = Preset.QUALITY if has_few_step_lora else self.settings.QWEN_PRESET
        return Preset.QUALITY if self.obstacle(default, role) else default

    def values(self, preset: Preset, role: str) -> dict[str, float]:
        """The steps and guidance of a preset that is served, in this order, by the names of their fields."""
        defaults = self.defaults(role)
        is_fast = preset is Preset.FAST and not defaults.is_distilled
        guidance = FAST_GUIDANCE if is_fast else defaults.guidance
        return {"num_inference_steps": self.steps(preset, role), "guidance_scale": guidance}

    def warnings_of(self, request: Drawing) -> list[str]:
        """What of a request that `apply` has completed has no effect, or does not fit the few steps of its drawing."""
        role = Role.of(request.task)
        is_distilled = self.defaults(role).is_distilled and not few_step_loras(request)
        warnings: list[str] = []
        if request.preset == Preset.FAST or is_distilled:
            values = self.values(Preset(request.preset or Preset.QUALITY), role)
            steps, guidance = values.values()
            words = f"preset 'fast' draws by a few-step LoRA, made for {steps} steps at guidance_scale {guidance:g}"
            words = self.distillation(role) if is_distilled else words
            own = {name: getattr(request, name) for name in values}
            warnings = [f"{words}; {name} is {own[name]:g}" for name, value in values.items() if own[name] != value]
        return warnings + few_steps.warnings_of(request, is_distilled)

    def distillation(self, role: str) -> str:
        """That the role's checkpoint is distilled, in words."""
        checkpoint, defaults = self.checkpoint(role), self.defaults(role)
        name = checkpoint.name if checkpoint else "the model"
        return f"{name} is distilled, made for {defaults.steps} steps at guidance_scale {defaults.guidance:g}"

    def steps(self, preset: Preset, role: str) -> int:
        """The number of steps of a preset that is served."""
        defaults = self.defaults(role)
        if preset is not Preset.FAST or defaults.is_distilled:
            return defaults.balanced_steps if preset is Preset.BALANCED else defaults.steps
        source = self.fast_lora(role)
        steps = (source and steps_in(source)) or self.settings.QWEN_FAST_STEPS
        assert steps, "the settings refuse a few-step LoRA whose steps neither its name nor QWEN_FAST_STEPS tells"
        return steps

    def obstacle(self, preset: Preset, role: str) -> str | None:
        """Why the role's model does not draw by the preset, as far as that is known. None: the preset is served."""
        checkpoint = self.checkpoint(role)
        if preset is not Preset.FAST or (checkpoint and checkpoint.defaults.is_distilled):
            return None
        if role not in FAST_LORAS:
            return f"no few-step LoRA is known for {role}"
        source = self.fast_lora(role)
        if not source:
            return f"{FAST_LORAS[role]} names no few-step LoRA"
        if self.is_missing(source):
            return f"the file that {FAST_LORAS[role]} names is not there"
        if checkpoint and not checkpoint.adaptable:
            return f"no LoRA can be applied to a {checkpoint.class_name}"
        return None

    def report(self) -> dict[str, PresetReport]:
        """For `health`, by role."""
        reports: dict[str, PresetReport] = {}
        for role in filter(self.settings.served_roles.__contains__, MODELS):
            reasons = {preset: self.obstacle(preset, role) for preset in Preset}
            default = self.settings.QWEN_PRESET
            reports[role] = {
                "served": [preset.value for preset in Preset if not reasons[preset]],
                "default": Preset.QUALITY.value if reasons[default] else default.value,
                "reasons": {preset.value: reason for preset, reason in reasons.items() if reason},
            }
        return reports

    def explain(self, request: Drawing) -> dict[str, Any]:
        """Which values of a completed request are its checkpoint's and not the usual ones, and who recommends them.

        Empty where there are none: the usual ones stand in the documentation.
        """
        role = Role.of(request.task)
        checkpoint, own = self.checkpoint(role), request.model_fields_set
        if not checkpoint:
            return {}
        defaults, preset = checkpoint.defaults, Preset(request.preset or Preset.QUALITY)
        theirs, usual = (
            one.of(request, one.balanced_steps if preset is Preset.BALANCED else one.steps, one.guidance)
            for one in (defaults, USUAL)
        )
        if few_steps.takes_few_steps(request):  # those are the LoRA's
            own = own | {"num_inference_steps", "guidance_scale"}
        taken = {
            name: value
            for name, value in theirs.items()
            if name not in own and getattr(request, name) == value != usual.get(name)
        }
        return {**taken, "source": f"{checkpoint.name}: {defaults.source}"} if taken else {}


def settle(job: "Job", presets: Presets) -> dict[str, Any]:
    """Complete the job's request anew, now that its checkpoint is known as far as it ever will be.

    Warnings that were told of what was filled in before give way to those of what is now. Returns what `explain` does.
    Raises `InvalidInput` for a preset that the checkpoint does not serve.
    """
    before = job.request
    job.request = after = presets.apply(before, job.warn)
    if after != before:
        stale = presets.warnings_of(before)
        job.warnings = [sentence for sentence in job.warnings if sentence not in stale]
        for sentence in presets.warnings_of(after):
            job.warn(sentence)
    return presets.explain(after)


def require_adaptable(request: Drawing, checkpoint: Adaptable | None) -> None:
    """Refuse LoRAs, and the preset that is made of one, where the checkpoint's transformer takes none."""
    if checkpoint and not checkpoint.adaptable and (request.loras or request.preset == Preset.FAST):
        field = "loras" if request.loras else f"preset '{request.preset}'"
        sentence = f"{field} is not served by {checkpoint.name}: no LoRA can be applied to a {checkpoint.class_name}"
        raise InvalidInput(sentence, BeyondSchema.ENDPOINT)
