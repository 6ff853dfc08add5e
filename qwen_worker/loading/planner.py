"""The plan of each of the endpoint's models, made for both together where they fit.

Loads and allocates nothing. Knows nothing of how a plan is carried out.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.controlnet import is_planned
from ..checkpoints.sharing import as_model
from ..errors import LoadError
from ..memory import card, cuda, placement
from ..memory.footprint import GB, Model, Plan
from ..memory.machine import Machine
from ..model_settings import Speedup
from ..settings import Settings
from ..speed.speedups import has_compiler, may_compile
from .catalogue import Catalogue
from .loaded import LoadedPipeline
from .second_card import SecondCard
from .stand_down import StoodDown, union


class Planner:
    """`machine`: reads what plans are made for; a benchmark names a smaller card here."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        machine: Callable[[], Machine],
        second_card: SecondCard | None = None,
    ):
        self.settings, self.catalogue, self.machine = settings, catalogue, machine
        self.second_card = second_card or SecondCard(settings)
        # By model setting:
        self.plans: dict[str, Plan] = {}
        self.stood_down: defaultdict[str, StoodDown] = defaultdict(StoodDown)  # what a plan must do without

    def place(self, task: str, loaded: Collection[LoadedPipeline]) -> Plan:
        """Where the task's model goes, beside what is loaded.

        Planned for all models of the endpoint together, so that the first does not take the room of the second; for
        this model alone where together they do not fit or the other cannot be found. Raises `LoadError`, before
        anything is fetched or allocated, where it fits nowhere. A plan whose room something else has taken since is
        made anew.
        """
        model, checkpoint = self.catalogue.model_for(task), self.catalogue.locate(task)
        if self.is_outdated(model, loaded):
            outdated = self.plans[model]
            self.plans = {other: plan for other, plan in self.plans.items() if plan is not outdated}
        if model not in self.plans:
            checkpoints = {model: checkpoint} | self.others(model)
            try:
                plan = self.plan(checkpoints, loaded)
            except LoadError:
                checkpoints = {model: checkpoint}
                plan = self.plan(checkpoints, loaded)
            self.plans |= dict.fromkeys(checkpoints, plan)
        return self.plans[model]

    def device(self, model: str) -> str:
        """Where the model was planned to go, "cpu" if it has no plan."""
        return self.plans[model].device if model in self.plans else "cpu"

    def is_outdated(self, model: str, loaded: Collection[LoadedPipeline]) -> bool:
        """Whether something else has taken of what the model was planned with; never once the plan is in use."""
        plan = self.plans.get(model)
        if plan is None or plan.device != "cuda" or any(pipeline.plan is plan for pipeline in loaded):
            return False
        room_bytes = card.room_bytes(beside_others=bool(loaded))
        return room_bytes is not None and room_bytes < plan.limit_bytes

    def others(self, model: str) -> dict[str, Checkpoint]:
        """By setting, the endpoint's other model, if it can be found and nothing has been planned without it."""
        others: dict[str, Checkpoint] = {}
        for role in self.settings.served_roles:
            other = self.catalogue.model_for(role.value)
            if other != model and not self.plans:
                with suppress(LoadError):
                    others[other] = self.catalogue.locate(role.value)
        return others

    def forget(self, loaded: Collection[LoadedPipeline]) -> None:
        """Have the models that are not loaded planned anew."""
        kept = {pipeline.model for pipeline in loaded}
        self.plans = {model: plan for model, plan in self.plans.items() if model in kept}

    def plan(self, by_model: Mapping[str, Checkpoint], loaded: Collection[LoadedPipeline]) -> Plan:
        """One plan for all these checkpoints, by model setting. Raises `LoadError`."""
        checkpoints, off = by_model.values(), union([self.stood_down[model] for model in by_model])
        cap_gb, machine = self.settings.QWEN_VRAM_GB, self.machine()
        resident_bytes = sum(pipeline.plan.weight_bytes for pipeline in loaded)
        if machine.gpu:
            # torch sees limits and processes that NVML may not, and a load that lacked memory has shown what there is.
            limits = machine.gpu.free_bytes, card.room_bytes(beside_others=bool(loaded)), off.max_bytes
            free_bytes = min(limit for limit in limits if limit is not None)
            machine = replace(machine, gpu=replace(machine.gpu, free_bytes=free_bytes))
        models: list[Model] = []
        before: list[Checkpoint] = []
        for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.pipeline_class.max_images):
            held = {name for pipeline in loaded for name in pipeline.components_for(checkpoint)}
            models.append(as_model(checkpoint, before, held))
            before.append(checkpoint)
        plan = placement.plan(
            models,
            machine,
            self.settings.QWEN_PRECISION,
            round(cap_gb * GB) - resident_bytes if cap_gb else None,
            off.savings(self.settings.QWEN_SAVINGS),
            self.settings.own_lora_count,
            off.layouts(),
            cuda.pinned_cost() if machine.gpu else 1,
            may_compile(self.settings.QWEN_SPEEDUPS) and has_compiler("cuda") and Speedup.COMPILE not in off.reasons,
            is_planned(self.settings.QWEN_CONTROLNET, checkpoints),
        )
        return self.second_card.extend(plan, machine, by_model)
