"""The plan of each of the endpoint's models, made for both together where they fit.

Loads and allocates nothing. Knows nothing of how a plan is carried out.
"""

from collections.abc import Callable, Collection
from contextlib import suppress

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sharing import as_model
from ..errors import LoadError
from ..memory import placement
from ..memory.footprint import GB, Plan
from ..memory.machine import Machine
from ..settings import Role, Settings
from ..speed.speedups import has_compiler, may_compile
from .catalogue import Catalogue
from .loaded import LoadedPipeline


class Planner:
    """`machine`: reads what plans are made for; a benchmark names a smaller card here."""

    def __init__(self, settings: Settings, catalogue: Catalogue, machine: Callable[[], Machine]):
        self.settings, self.catalogue, self.machine = settings, catalogue, machine
        self.plans: dict[str, Plan] = {}  # by model setting

    def place(self, task: str, loaded: Collection[LoadedPipeline]) -> Plan:
        """Where the task's model goes, beside what is loaded.

        Planned for all models of the endpoint together, so that the first does not take the room of the second; for
        this model alone where together they do not fit or the other cannot be found. Raises `LoadError`, before
        anything is fetched or allocated, where it fits nowhere.
        """
        model, checkpoint = self.catalogue.model_for(task), self.catalogue.locate(task)
        if model not in self.plans:
            checkpoints = {model: checkpoint} | self.others(model)
            try:
                plan = self.plan(checkpoints.values(), loaded)
            except LoadError:
                checkpoints = {model: checkpoint}
                plan = self.plan(checkpoints.values(), loaded)
            self.plans |= dict.fromkeys(checkpoints, plan)
        return self.plans[model]

    def others(self, model: str) -> dict[str, Checkpoint]:
        """By setting, the endpoint's other model, if it can be found and nothing has been planned without it."""
        others: dict[str, Checkpoint] = {}
        for role in Role:
            other = self.catalogue.model_for(role.value)
            if other != model and not self.plans:
                with suppress(LoadError):
                    others[other] = self.catalogue.locate(role.value)
        return others

    def plan(self, checkpoints: Collection[Checkpoint], loaded: Collection[LoadedPipeline]) -> Plan:
        """One plan for all these checkpoints. Raises `LoadError`."""
        cap_gb = self.settings.QWEN_VRAM_GB
        resident_bytes = sum(pipeline.plan.weight_bytes for pipeline in loaded)
        models, before = [], [pipeline.checkpoint for pipeline in loaded]
        for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.pipeline_class.max_images):
            models.append(as_model(checkpoint, before))
            before.append(checkpoint)
        return placement.plan(
            models,
            self.machine(),
            self.settings.QWEN_PRECISION,
            round(cap_gb * GB) - resident_bytes if cap_gb else None,
            self.settings.QWEN_SAVINGS,
            self.settings.own_lora_count,
            may_compile(self.settings.QWEN_SPEEDUPS) and has_compiler("cuda"),
        )
