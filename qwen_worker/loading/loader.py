"""Each task's model as a job can have it: loaded on first need, or the reason why it cannot be, remembered.

Every step returns what was asked for, or the `LoadError` that says why it cannot be had. Knows nothing of what follows
from a failure, a stand-in or an error: for a job `Worker.fall_back` of the handler decides that, at the start
`serving/fitness.py`.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from ..checkpoints.files import is_folder
from ..errors import LoadError
from ..log import log_line
from ..memory.failures import Failure, attempt
from ..memory.footprint import Plan
from ..memory.machine import read_gpu
from ..model_settings import Role
from ..settings import Fallback, Settings
from . import libraries
from .loaded import LoadedPipeline
from .pipelines import Pipelines

Result = TypeVar("Result")
MAX_PAUSE_SECONDS = 3600


@dataclass(frozen=True)
class LoadFailure:
    """Why a model could not be had. `pause`: seconds before the next try, which may begin at `next_try` (monotonic)."""

    error: LoadError
    pause: float
    next_try: float


class Loader:
    """`place` and `load` are for the inference thread; the others, for any, read or wait for that thread."""

    def __init__(self, settings: Settings, pipelines: Pipelines, inference_thread: Executor):
        self.settings, self.pipelines, self.inference_thread = settings, pipelines, inference_thread
        self.failures: dict[str, LoadFailure] = {}  # by role

    def import_ahead(self) -> None:
        """Begin with the imports of the first load, on a thread of their own, unless there will hardly be a load.

        Without a card the published models fit nowhere; what does is a model in a folder.
        """
        models = [self.pipelines.catalogue.model_for(role.value) for role in self.settings.served_roles]
        if self.settings.QWEN_FALLBACK is not Fallback.FORCE and (read_gpu() or any(map(is_folder, models))):
            libraries.begin()

    def ready(self, task: str) -> bool:
        """Whether the task's pipeline is loaded."""
        loaded = self.pipelines.get(task)
        return loaded is not None and task in loaded.checkpoint.pipeline_class.tasks

    def report(self) -> dict[str, Any]:
        """What `health` tells of stand-ins: whether there are any, and by role why a model could not be had."""
        reasons = {role: failure.error.reason for role, failure in self.failures.items()}
        return {"mode": self.settings.QWEN_FALLBACK.value, "reasons": reasons}

    def place(self, task: str) -> Plan | LoadError:
        """Where the task's model goes on this machine; loads nothing."""
        return self.attempt(self.pipelines.place, task)

    def load(self, task: str, require_room: Callable[[Plan], None] = lambda plan: None) -> LoadedPipeline | LoadError:
        """The task's pipeline. `require_room` sees the plan before anything is loaded, and may raise."""
        plan = self.place(task)
        if isinstance(plan, LoadError):
            return plan
        require_room(plan)
        loaded = self.attempt(self.load_and_log, task)
        if not isinstance(loaded, LoadError):
            self.failures.pop(Role.of(task).value, None)
        return loaded

    def why_not_placed(self, task: str) -> LoadError | None:
        """Why the task's model cannot be had on this machine, if so; loads nothing."""
        plan = self.inference_thread.submit(self.place, task).result()
        return plan if isinstance(plan, LoadError) else None

    def why_not_loaded(self, task: str) -> LoadError | None:
        """Load a task's pipeline before any job asks for it; why it cannot be had, if so."""
        loaded = self.inference_thread.submit(self.load, task).result()
        return loaded if isinstance(loaded, LoadError) else None

    def load_and_log(self, task: str) -> LoadedPipeline:
        """The task's pipeline; the first time, its plan and its seconds go to the log."""
        before = self.pipelines.get(task)
        loaded = self.pipelines.load(task)
        if not before:
            name = loaded.checkpoint.name
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in loaded.stage_seconds.items())
            loras = ", ".join(f"{use.label} at {use.scale:g}" for use in loaded.adapters.always_applied)
            facts = f"{loaded.plan}; speed-ups: {loaded.speed}" + (f"; LoRAs: {loras}" if loras else "")
            at = f" at {revision}" if (revision := loaded.checkpoint.revision) else ""
            log_line(None, "INFO", f"{name}{at} loaded in {loaded.load_seconds:.1f} s: {facts}")
            log_line(None, "INFO", f"{name} seconds: {stages}; prepared: {loaded.prepared}")
        return loaded

    def attempt(self, step: Callable[[str], Result], task: str) -> Result | LoadError:
        """What `step(task)` returns, or why the model cannot be had: remembered, and tried again if that is transient.

        The pause before the next try doubles with each failure that follows another. Raises `CudaSpoiledError`: no
        model can be had in this process any more, and stand-ins would hide it.
        """
        if self.settings.QWEN_FALLBACK is Fallback.FORCE:
            return LoadError("QWEN_FALLBACK=force: this worker loads no model")
        role = Role.of(task).value
        before = self.failures.get(role)
        if before and (not before.error.transient or time.monotonic() < before.next_try):
            return before.error
        try:
            result = attempt(lambda: step(task))
        except LoadError as error:
            result = error
        if isinstance(result, Failure):  # of locating or planning: a load that fails says so in a LoadError of its own
            result = LoadError(f"{result.reason} while looking for the {role} model", transient=True)
        if not isinstance(result, LoadError):
            return result
        log_line(None, "WARN", f"the {role} model cannot be loaded: {result.reason}")
        pause = min(2 * before.pause, MAX_PAUSE_SECONDS) if before else self.settings.QWEN_LOAD_RETRY_SECONDS
        self.failures[role] = LoadFailure(result, pause, time.monotonic() + pause)
        return result
