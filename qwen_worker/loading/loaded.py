"""A pipeline that is ready to run, with what was decided about it, and what replies and `health` tell of it.

Knows nothing of how it was loaded, nor of what is drawn by it.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sharing import shared_components
from ..jobs.reply import DrawingModel
from ..memory.footprint import GB, Plan
from ..model_settings import Speedup
from ..speed.speedups import COMPILED_LORAS, STEP_CACHE, Speed
from .second_card import SecondCard

if TYPE_CHECKING:
    from ..lora.adapters import Adapters
    from ..model.modulation import ModulationTable
    from .self_check import Finding


# Of jobs, by what their memory goes by: width and height in pixels, input pictures, whether a ControlNet draws too.
Kind = tuple[int, int, int, bool]


class Shortage(NamedTuple):
    """`attempt`: which attempt at drawing had memory enough; `jobs`: how many in a row found the earlier ones short."""

    attempt: int
    jobs: int


@dataclass(frozen=True)
class LoadedPipeline:
    model: str  # its setting: the key among the loaded pipelines
    checkpoint: Checkpoint
    plan: Plan
    pipe: Any = field(repr=False)  # a diffusers pipeline of the checkpoint's own class
    table: "ModulationTable | None" = field(repr=False)  # stands for the transformer's modulation layers
    adapters: "Adapters" = field(repr=False)  # apply LoRAs to its transformer
    shared: tuple[str, ...]  # components that it has in common with a pipeline loaded before
    load_seconds: float
    stage_seconds: dict[str, float]  # of the load, by stage; `first_job` is added when that has been drawn
    prepared: str  # the name of the prepared checkpoint that it was loaded from, or why there is none
    speed: Speed  # what it is drawn faster by
    loaded_without: dict[str, str]  # what of the worker's own failed when it was loaded, and why
    not_finite: list[str] = field(default_factory=list[str])  # ids of the last jobs in a row that came to NaN
    shortages: dict[Kind, Shortage] = field(default_factory=dict[Kind, "Shortage"])
    findings: "tuple[Finding, ...]" = ()  # of its self-check, none where it had none
    second_card: SecondCard | None = None  # that draws beside the first, where one does

    @property
    def drawing_model(self) -> DrawingModel:
        """What replies tell of it."""
        checkpoint = self.checkpoint
        on_card, stood_down = self.plan.device == "cuda", tuple(self.stood_down)
        return DrawingModel(checkpoint.name, checkpoint.revision, self.caches_steps, on_card, stood_down)

    @property
    def caches_steps(self) -> bool:
        """Whether preset `balanced` has its step cache: its transformer is known to it, and it has not failed."""
        return self.checkpoint.pipeline_class.caches_steps and STEP_CACHE not in self.speed.failures

    @property
    def stood_down(self) -> dict[str, str]:
        """What of the worker's own it does without because that failed, and why."""
        return self.loaded_without | self.speed.failures

    @property
    def speedup_states(self) -> dict[Speedup, str]:
        """For each speed-up `on`, or why no picture is drawn by it at present."""
        states, failures = dict(self.speed.states), self.speed.failures
        if self.speed.has(Speedup.COMPILE) and self.adapters.always_applied and COMPILED_LORAS in failures:
            states[Speedup.COMPILE] = f"every picture has LoRAs (QWEN_LORAS): {failures[COMPILED_LORAS]}"
        if self.speed.has(Speedup.GUIDANCE) and self.active_second_card:
            states[Speedup.GUIDANCE] = "each of the two passes has a card of its own"
        return states

    @property
    def active_second_card(self) -> SecondCard | None:
        """The second card, where it draws beside the first at present."""
        return self.second_card if self.second_card and self.second_card.serves(self.model) else None

    @property
    def second_card_passes(self) -> int:
        """How many passes of transformers the second card has computed."""
        return self.second_card.counts.passes if self.second_card else 0

    def components_for(self, checkpoint: Checkpoint) -> list[str]:
        """Its components that serve the checkpoint too: equal ones with all the parts that it needs.

        The text encoder of a model that was placed alone may lack some.
        """
        needs = checkpoint.pipeline_class
        has_parts = (self.plan.vision or not needs.max_images) and (self.plan.language_head or not needs.captions)
        return [name for name in shared_components(checkpoint, self.checkpoint) if name != "text_encoder" or has_parts]

    def report(self) -> dict[str, Any]:
        """What `health` tells of it."""
        return {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "class": self.checkpoint.class_name,
            "transformer": asdict(other) if (other := self.checkpoint.transformer) else None,
            "device": self.plan.device,
            "precision": self.plan.precision.value,
            "plan": str(self.plan),
            "weights_gb": round(self.plan.weight_bytes / GB, 3),
            "speedups": {name.value: state for name, state in self.speedup_states.items()},
            "stood_down": self.stood_down,
            "self_check": [finding.report() for finding in self.findings],
            "loras": [{"setting": use.label, "scale": use.scale} for use in self.adapters.always_applied],
            "shared": list(self.shared),
            "prepared": self.prepared,
            "load_seconds": round(self.load_seconds, 3),
            "stages": dict(self.stage_seconds),
        }
