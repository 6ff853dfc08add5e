"""Presets: what a picture is drawn by where its job does not say, which of them an endpoint serves, and why not. Pure.

`quality` is the model as released; `balanced` takes fewer steps and a step cache (`step_cache.py`) where the model has
one; `fast` a few-step LoRA without guidance. Knows nothing of how any of it is done.
"""

import math
from collections.abc import Callable
from typing import Protocol

from ..errors import InvalidInput
from ..preset_settings import Preset, steps_in
from ..settings import Role, Settings
from .request import Drawing

# Of balanced's 30 the step cache predicts 12, so that about a third of quality's are computed: what that does to the
# pictures is measured by `python -m benchmarks quality`.
STEPS = {Preset.QUALITY: 50, Preset.BALANCED: 30}
GUIDANCE = {Preset.QUALITY: 4.0, Preset.BALANCED: 4.0, Preset.FAST: 1.0}
# What few-step LoRAs in the Lightning layout are distilled for: https://github.com/ModelTC/Qwen-Image-Lightning
FEW_STEP_SCHEDULER = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
FAST_LORAS = {"generate": "QWEN_IMAGE_FAST_LORA", "edit": "QWEN_EDIT_FAST_LORA"}
MODELS = {"generate": "QWEN_IMAGE_MODEL", "edit": "QWEN_EDIT_MODEL"}


class Adaptable(Protocol):
    """What presets and LoRAs depend on of a checkpoint. `adaptable`: LoRAs and step caches know its transformer."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def adaptable(self) -> bool: ...


class Presets:
    """The presets of one endpoint; without settings, of one that is as it comes.

    `released(model)`: what a model's name alone says of its checkpoint, None where it says nothing. `missing(source)`:
    whether it names a file or folder of this machine that is not there.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        released: Callable[[str], Adaptable | None] = lambda model: None,
        missing: Callable[[str], bool] = lambda source: False,
    ):
        self.settings, self.released, self.missing = settings, released, missing

    def fast_lora(self, role: str) -> str | None:
        """Where the few-step LoRA of the role's model is."""
        return getattr(self.settings, FAST_LORAS[role], None)

    def applied(self, request: Drawing) -> Drawing:
        """The request with its preset, and the preset's steps and guidance where it gives none itself.

        Raises `InvalidInput` for a preset that the endpoint's settings do not have.
        """
        role = Role.of(request.task)
        if request.preset is None:
            asked = self.settings.QWEN_PRESET if self.settings else Preset.QUALITY
            preset = Preset.QUALITY if self.why_not(asked, role) else asked
        else:
            preset = Preset(request.preset)
            if reason := self.why_not(preset, role):
                raise InvalidInput(f"preset '{preset.value}' is not served for {request.task} here: {reason}")
        chosen = {"num_inference_steps": self.steps(preset, role), "guidance_scale": GUIDANCE[preset]}
        given = request.model_fields_set
        return request.model_copy(
            update={"preset": preset.value} | {name: value for name, value in chosen.items() if name not in given}
        )

    def steps(self, preset: Preset, role: str) -> int:
        if preset is not Preset.FAST:
            return STEPS[preset]
        return steps_in(self.fast_lora(role)) or self.settings.QWEN_FAST_STEPS

    def why_not(self, preset: Preset, role: str, checkpoint: Adaptable | None = None) -> str | None:
        """Why the role's model does not draw by the preset, as far as that is known before anything is fetched."""
        if preset is not Preset.FAST:
            return None
        source = self.fast_lora(role)
        if not source:
            return f"{FAST_LORAS[role]} names no few-step LoRA"
        if self.missing(source):
            return f"the file that {FAST_LORAS[role]} names is not there"
        checkpoint = checkpoint or self.released(getattr(self.settings, MODELS[role]))
        if checkpoint and not checkpoint.adaptable:
            return f"no LoRA can be applied to a {checkpoint.class_name}"
        return None

    def served(self, known: Callable[[str], Adaptable | None]) -> dict[str, dict]:
        """For `health`, by role: the presets that are served, which one is drawn by where a job does not say, and why
        another is not served. `known(role)`: the role's checkpoint, once it is known."""
        found = {}
        for role in FAST_LORAS:
            reasons = {one: self.why_not(one, role, known(role)) for one in Preset}
            default = self.settings.QWEN_PRESET
            found[role] = {
                "served": [one.value for one in Preset if not reasons[one]],
                "default": Preset.QUALITY.value if reasons[default] else default.value,
                "reasons": {one.value: reason for one, reason in reasons.items() if reason},
            }
        return found


def require_adaptable(request: Drawing, checkpoint: Adaptable | None) -> None:
    """Refuse LoRAs, and the preset that is made of one, where the checkpoint's transformer takes none."""
    if checkpoint and not checkpoint.adaptable and (request.loras or request.preset == Preset.FAST):
        field = "loras" if request.loras else f"preset '{request.preset}'"
        raise InvalidInput(
            f"{field} is not served by {checkpoint.name}: no LoRA can be applied to a {checkpoint.class_name}"
        )
