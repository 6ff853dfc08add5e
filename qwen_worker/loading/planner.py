"""The plan of each of the endpoint's models, made for both together where they fit. Loads and allocates nothing."""

from collections.abc import Callable, Collection
from contextlib import suppress

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sharing import as_model
from ..errors import LoadError
from ..memory import placement
from ..memory.footprint import GB, Plan
from ..memory.machine import Machine
from ..settings import Role, Settings
from .catalogue import Catalogue
from .loaded import Loaded


class Planner:
    """`machine`: reads what plans are made for; a benchmark names a smaller card here."""

    def __init__(self, settings: Settings, catalogue: Catalogue, machine: Callable[[], Machine]):
        self.settings, self.catalogue, self.machine = settings, catalogue, machine
        self.plans: dict[str, Plan] = {}  # by model setting

    def place(self, task: str, loaded: Collection[Loaded]) -> Plan:
        """Where the task's model goes, beside what is loaded.

        Planned for all models of the endpoint together, so that the first does not take the room of the second; for
        this one alone where together they do not fit or the other cannot be found. Raises `LoadError`, before anything
        is fetched or allocated, where it fits nowhere.
        """
        model, checkpoint = self.catalogue.model_for(task), self.catalogue.locate(task)
        if model not in self.plans:
            together = {model: checkpoint} | self.others(model)
            try:
                plan = self.plan(together.values(), loaded)
            except LoadError:
                together = {model: checkpoint}
                plan = self.plan(together.values(), loaded)
            self.plans |= dict.fromkeys(together, plan)
        return self.plans[model]

    def others(self, model: str) -> dict[str, Checkpoint]:
        """The endpoint's other model, if it can be found and nothing has been planned without it."""
        found: dict[str, Checkpoint] = {}
        for role in Role:
            other = self.catalogue.model_for(role.value)
            if other != model and not self.plans:
                with suppress(LoadError):
                    found[other] = self.catalogue.locate(role.value)
        return found

    def plan(self, together: Collection[Checkpoint], loaded: Collection[Loaded]) -> Plan:
        cap = self.settings.QWEN_VRAM_GB
        resident = sum(one.plan.weight_bytes for one in loaded)
        models, before = [], [one.checkpoint for one in loaded]
        for checkpoint in sorted(together, key=lambda one: one.pipeline_class.max_images):
            models.append(as_model(checkpoint, before))
            before.append(checkpoint)
        return placement.plan(
            models,
            self.machine(),
            self.settings.QWEN_PRECISION,
            round(cap * GB) - resident if cap else None,
            self.settings.QWEN_SAVINGS,
            self.settings.own_loras,
        )
