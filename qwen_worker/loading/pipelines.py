"""The loaded pipelines: one for each checkpoint, loaded on first need, equal components once in memory.

The catalogue says which checkpoint serves a task, the planner where it goes, and the builder puts it together. Knows
nothing of jobs and of what follows when a model cannot be loaded.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.sharing import shared_components
from ..errors import JobError, LoadError
from ..lora.file import LoraUse
from ..memory.footprint import Plan
from ..memory.machine import Machine, read_machine
from ..settings import Role, Settings
from ..speed import speedups
from ..stopwatch import Stopwatch
from . import prepared
from .builder import Builder
from .catalogue import Catalogue
from .loaded import LoadedPipeline
from .planner import Planner

if TYPE_CHECKING:
    from ..lora.adapters import Adapters
    from ..model.modulation import ModulationTable


class Pipelines:
    """Not thread-safe: everything but `loaded` is for the one inference thread.

    `own_loras`: by role, the LoRAs that every picture is drawn with. `machine`: reads what plans are made for.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        own_loras: Callable[[str], Sequence[LoraUse]] = lambda role: (),
        machine: Callable[[], Machine] = read_machine,
    ):
        self.settings, self.catalogue, self.own_loras = settings, catalogue, own_loras
        self.planner = Planner(settings, catalogue, machine)
        self.builder = Builder(settings.QWEN_LOAD_THREADS)
        self.loaded: dict[str, LoadedPipeline] = {}  # by model setting

    def get(self, task: str) -> LoadedPipeline | None:
        """The task's pipeline, if it is loaded."""
        return self.loaded.get(self.catalogue.model_for(task))

    def report(self) -> list[dict[str, Any]]:
        """What `health` tells of the loaded pipelines."""
        return [loaded.report() for loaded in list(self.loaded.values())]

    def place(self, task: str) -> Plan:
        """Where the task's model goes. Raises `LoadError`, before anything is fetched or allocated, where it cannot."""
        return self.planner.place(task, self.loaded.values())

    def load(self, task: str) -> LoadedPipeline:
        """The task's pipeline, loaded on first use. Raises `LoadError`, before anything is fetched where it can."""
        model = self.catalogue.model_for(task)
        if model not in self.loaded:
            started = time.perf_counter()
            stopwatch = self.builder.stopwatch = Stopwatch()
            plan, checkpoint = self.place(task), self.catalogue.locate(task)
            folder, note = self.find_prepared(checkpoint, plan)
            if folder is None and checkpoint.folder is None:
                with stopwatch("download"):
                    checkpoint = self.catalogue.fetch(task)
            with stopwatch("compare"):
                shared = self.shared_components(checkpoint)
            loras = self.own_loras(Role.of(task))
            pipe, table, note = self.build(model, checkpoint, plan, shared, folder, note)
            adapters = adapters_of(checkpoint, plan, pipe, table, loras)
            self.builder.part = "speed-ups"
            with stopwatch("compile"):
                machine = self.planner.machine()
                speed = speedups.apply(pipe, plan, self.settings, machine, table, checkpoint.name)
            self.builder.part = ""
            facts = tuple(shared), time.perf_counter() - started, stopwatch.report(), note, speed
            self.loaded[model] = LoadedPipeline(model, checkpoint, plan, pipe, table, adapters, *facts)
        return self.loaded[model]

    def find_prepared(self, checkpoint: Checkpoint, plan: Plan) -> tuple[Path | None, str]:
        """The prepared checkpoint to load in the checkpoint's place, if any, and its name or why there is none."""
        if not self.settings.QWEN_LOAD_THREADS:
            return None, "not looked for: QWEN_LOAD_THREADS=0"
        roots, gpu = self.settings.QWEN_MODEL_ROOTS, read_machine().gpu
        return prepared.find(checkpoint, plan, roots, gpu, self.settings.QWEN_PREPARED)

    def build(
        self,
        model: str,
        checkpoint: Checkpoint,
        plan: Plan,
        shared: dict[str, Any],
        folder: Path | None,
        note: str,
    ) -> "tuple[Any, ModulationTable | None, str]":
        """The pipeline, its table, and the note which prepared checkpoint they are from, or why they are from none.

        A prepared checkpoint in `folder` may prove damaged only as its weights are read: its source is loaded then.
        Raises `LoadError` where there is no source to load instead.
        """
        beside_others = any(loaded.plan is not plan for loaded in self.loaded.values())
        if folder:
            try:
                return (*self.builder.build(model, checkpoint, plan, shared, folder, beside_others), note)
            except LoadError as failure:
                if checkpoint.folder is None:
                    raise
                note = f"{folder.name} is not used: {failure.reason}"
            self.builder.release(model, plan)
        return (*self.builder.build(model, checkpoint, plan, shared, None, beside_others), note)

    def activate(self, loaded: LoadedPipeline) -> float:
        """Bring the pipeline's transformer to the card if it is swapped; the seconds that it took."""
        return self.builder.swap.activate(loaded.model) if self.builder.swap else 0.0

    def shared_components(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Components of pipelines already loaded that equal this checkpoint's, by name."""
        shared: dict[str, Any] = {}
        for other in self.loaded.values():
            for name in shared_components(checkpoint, other.checkpoint):
                # The text encoder of a model placed alone may lack the vision tower that this checkpoint needs.
                if name != "text_encoder" or other.plan.vision or not checkpoint.pipeline_class.max_images:
                    shared.setdefault(name, other.pipe.components[name])
        return shared


def adapters_of(
    checkpoint: Checkpoint, plan: Plan, pipe: Any, table: "ModulationTable | None", loras: Sequence[LoraUse]
) -> "Adapters":
    """What applies LoRAs to the pipeline's transformer. `loras`: the endpoint's own.

    Raises `LoadError` where one of these does not fit the transformer.
    """
    import torch

    from ..lora.adapters import Adapters

    adapters = Adapters(pipe.transformer, table, getattr(torch, plan.dtype), plan.device, checkpoint.name, loras)
    try:
        adapters.require_fits(loras)
        for use in loras:
            adapters.weights_for(use)
    except JobError as error:
        raise LoadError(error.sentence) from None
    return adapters
