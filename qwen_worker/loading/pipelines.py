"""The loaded pipelines: one for each checkpoint, loaded on first need, equal components once in memory.

The catalogue says which checkpoint serves a task, the planner where it goes, and the builder puts it together. Knows
nothing of jobs and of what follows when a model cannot be loaded.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.files import label_of
from ..errors import CudaSpoiledError, JobError, LoadError
from ..jobs.presets import Presets
from ..log import log_line
from ..lora.file import LoraUse
from ..memory.failures import Failure, attempt
from ..memory.footprint import LOSSY, Plan
from ..memory.machine import Machine, read_machine
from ..model_settings import Role, Saving, Speedup
from ..settings import Settings
from ..speed import compile_store, speedups
from ..speed.compile_ahead import CompiledLoras, wanted_loras
from ..speed.speedups import COMPILED_LORAS, Speed, compile_again, compile_loras
from ..stopwatch import Stopwatch
from . import libraries, prepared, self_check
from .builder import Builder, adapters_of, rank_of
from .catalogue import Catalogue
from .crash_notes import CrashNotes
from .loaded import LoadedPipeline
from .planner import Planner
from .rank_messages import TransformerLoad
from .second_card import SecondCard
from .self_check import Finding
from .stand_down import PINNING, READER, ROOM, SELF_CHECK, SPEEDUPS, find_culprits
from .subject import Subject

if TYPE_CHECKING:
    from ..lora.adapters import Adapters
    from ..model.modulation import ModulationTable


class Pipelines:
    """Not thread-safe: everything but `loaded` and what says so is for the one inference thread.

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
        self.second_card = SecondCard(settings)
        self.planner = Planner(settings, catalogue, machine, self.second_card)
        self.builder = Builder(settings.QWEN_LOAD_THREADS)
        self.loaded: dict[str, LoadedPipeline] = {}  # by model setting
        self.notes = CrashNotes(compile_store.folder(settings), self.machine_kind)

    def machine_kind(self) -> str:
        """The card, or the CPU, and the versions of what computes on it."""
        gpu = self.planner.machine().gpu
        return compile_store.machine_kind(gpu and gpu.name)

    def get(self, task: str) -> LoadedPipeline | None:
        """The task's pipeline, if it is loaded."""
        return self.loaded.get(self.catalogue.model_for(task))

    def load_state(self) -> dict[str, Any]:
        """The stage of the load that is going on, with the bytes of a download; {} where none is. For any thread."""
        stage = self.builder.stopwatch.stage
        return {"stage": stage, **self.catalogue.download_state()} if stage else {}

    def report(self) -> list[dict[str, Any]]:
        """What `health` tells of the loaded pipelines."""
        second = self.second_card.report()
        more = {"second_card": second} if second else {}
        return [loaded.report() | more for loaded in list(self.loaded.values())]

    def place(self, task: str) -> Plan:
        """Where the task's model goes. Raises `LoadError`, before anything is fetched or allocated, where it cannot."""
        self.heed_notes(self.catalogue.model_for(task))
        return self.planner.place(task, self.loaded.values())

    def load(self, task: str) -> LoadedPipeline:
        """The task's pipeline, loaded on first use.

        Where something of the worker's own fails, the model is loaded again without it. Raises `LoadError`, before
        anything is fetched where it can, and `CudaSpoiledError`.
        """
        model = self.catalogue.model_for(task)
        while model not in self.loaded:
            try:
                outcome = attempt(lambda: self.load_once(model, task))
            except LoadError as error:
                outcome = LoadError(error.reason, error.transient)  # without the traceback and all that its frames hold
            except CudaSpoiledError as error:
                suspects = self.find_culprits(model)
                at_work = suspects if self.builder.part == SPEEDUPS else suspects[:1]
                raise self.notes.blame(error.reason, at_work) from None
            if isinstance(outcome, LoadedPipeline):
                self.loaded[model] = outcome
                break
            self.release(model, self.planner.device(model))
            if isinstance(outcome, LoadError):
                if self.planner.is_outdated(model, self.loaded.values()):
                    continue  # another process took of the card: the next plan counts with what is left
                raise self.planner.stood_down[model].explain(outcome)
            self.retreat(model, outcome)
        return self.loaded[model]

    def heed_notes(self, model: str) -> None:
        """Leave out what was at work when an earlier start met a CUDA error."""
        for name, reason in self.notes.read().get("reasons", {}).items():
            self.planner.stood_down[model].reasons.setdefault(name, f"an earlier start met {reason}")

    def blame(self, loaded: LoadedPipeline, error: CudaSpoiledError) -> CudaSpoiledError:
        """The error to raise for a context that was spoiled while the pipeline was drawing."""
        plan, speed = loaded.plan, loaded.speed
        at_work = [speedup.value for speedup in Speedup if speed.has(speedup)]
        at_work = at_work or [plan.precision.value] * (plan.precision in LOSSY) or [Saving.TABLE.value] * plan.table
        return self.notes.blame(error.reason, at_work)

    def load_once(self, model: str, task: str) -> LoadedPipeline:
        """The task's pipeline by its present plan. Raises `LoadError`, and whatever the libraries raise."""
        started = time.perf_counter()
        stopwatch, self.builder.part = Stopwatch(), ""
        self.builder.stopwatch = stopwatch
        with stopwatch("import"):
            libraries.import_up_to("torch")
        from ..model.host_memory import pinning

        plan, checkpoint, off = self.place_again(task), self.catalogue.locate(task), self.planner.stood_down[model]
        folder, note = self.find_prepared(checkpoint, plan)
        if folder is None and checkpoint.folder is None:
            with stopwatch("download"):
                checkpoint = self.catalogue.fetch(task)
        with stopwatch("compare"):
            shared = self.shared_components(checkpoint)
        loras = self.own_loras(Role.of(task))
        pinning.resume()
        pipe, table, note = self.build(model, checkpoint, plan, shared, folder, note, loras)
        rows, wanted = self.builder.shared_rows.get(model), self.loras_to_compile(plan, Role.of(task), loras)
        self.second_card.complete_load(model, rows and rows.handle, wanted)
        adapters = adapters_of(checkpoint, plan, pipe, table, loras)
        # The endpoint's own LoRAs are part of every picture, and so of what is compiled.
        own_rank = rank_of(loras, plan)
        with_own = functools.partial(adapters.apply, (), rank=own_rank) if loras else nullcontext
        self.builder.part = SPEEDUPS
        with stopwatch("compile"), with_own():
            machine = self.planner.machine()
            speed = speedups.apply(pipe, plan, self.settings, machine, table, checkpoint.name, off.reasons)
        subject = Subject(model, checkpoint, plan, pipe, table, speed, self.builder.swap, tuple(shared), with_own)
        findings = self.check(subject, machine)
        self.builder.part = SPEEDUPS
        with stopwatch("compile"):
            speed = self.compile_loras(subject, adapters, wanted, own_rank)
        second = self.second_card if self.second_card.await_load(model, speed) else None
        self.builder.part = ""
        seconds = time.perf_counter() - started
        without = dict(off.reasons) | ({PINNING: pinning.refusal} if pinning.refusal else {})
        facts = plan, pipe, table, adapters, tuple(shared), seconds, stopwatch.report(), note, speed, without
        return LoadedPipeline(model, checkpoint, *facts, findings=findings, second_card=second)

    def loras_to_compile(self, plan: Plan, role: str, own: Sequence[LoraUse]) -> CompiledLoras:
        """The LoRAs that jobs of the role may bring, for which blocks are compiled; `own`: those of every picture, to
        which all others are added.
        """
        if own:
            return CompiledLoras.NONE
        return wanted_loras(self.settings, plan.precision, bool(Presets(self.settings).fast_lora(role)))

    def compile_loras(self, subject: Subject, adapters: "Adapters", wanted: CompiledLoras, own_rank: int) -> Speed:
        """The speed-ups with blocks that are compiled for the `wanted` LoRAs.

        `own_rank`: of the endpoint's own for every picture, 0 where there are none or they cannot be padded.
        """
        speed, settings = subject.speed, self.settings
        if adapters.always_applied:
            return replace(speed, loras=CompiledLoras.JOBS if own_rank else CompiledLoras.NONE)
        facts = subject.pipe, subject.plan, settings, subject.table, adapters.example()
        return compile_loras(speed, wanted, *facts, self_check.block_comparison(COMPILED_LORAS, subject, settings))

    def check(self, subject: Subject, machine: Machine) -> tuple[Finding, ...]:
        """The findings of the self-check. What has failed in it stands down, at the next start too.

        A speed-up does so at once. Raises `ArithmeticError` for what the model has to be loaded again without; one that
        could not be compared, as for want of memory, is no reason for that, nor is a self-check that fails itself.
        """
        self.builder.part = "self-check"
        with self.builder.stopwatch("check"):
            gpu = machine.gpu if subject.plan.device == "cuda" else None
            findings = attempt(lambda: self_check.check(subject, self.settings, gpu and gpu.name))
        if isinstance(findings, Failure):
            findings = [Finding("self-check", math.nan, 0.0, 0.0, findings.reason)]
        failed = {finding.name: finding for finding in findings if not finding.passed}
        for speedup in Speedup:
            if speedup.value in failed and subject.speed.has(speedup):
                self.stand_down(subject, speedup, failed[speedup.value])
        for name, finding in failed.items():
            if not finding.reason and name not in (*Speedup, "lora"):
                self.notes.remember(name, str(finding))
                self.builder.part = SELF_CHECK + name
                raise ArithmeticError(str(finding))
        return tuple(findings)

    def stand_down(self, subject: Subject, speedup: Speedup, finding: Finding) -> None:
        """Draw without a speed-up, at the next start too if blocks had it compiled in. Raises `CudaSpoiledError`."""
        subject.speed.stand_down(speedup, str(finding))
        if speedup in (Speedup.ATTENTION, Speedup.GELU) and not finding.reason:
            self.notes.remember(speedup.value, str(finding))
        if speedup is Speedup.GELU and subject.speed.has(Speedup.COMPILE):
            self.builder.part = SPEEDUPS
            facts = subject.pipe, subject.plan, self.settings, subject.table
            with self.builder.stopwatch("compile"), subject.drawn_with():
                compile_again(subject.speed, *facts, self_check.block_comparison("compile", subject, self.settings))

    def place_again(self, task: str) -> Plan:
        """The task's plan, alone on the card if after a failure there is no room for it beside what is loaded."""
        try:
            return self.place(task)
        except LoadError:
            if not self.loaded or not self.planner.stood_down[self.catalogue.model_for(task)].reasons:
                raise
        self.unload_all()
        return self.place(task)

    def unload_all(self) -> None:
        """Let go of every pipeline: each is planned and loaded anew when a job needs it."""
        for model in list(self.loaded):
            device = self.loaded.pop(model).plan.device  # which nothing here holds while its memory is given back
            self.release(model, device)
        self.planner.forget(())

    def release(self, model: str, device: str) -> None:
        """Give back what a model has left, on both cards."""
        self.builder.release(model, device)
        self.second_card.release(model)

    def find_culprits(self, model: str) -> list[str]:
        """What of the worker's own was at work where the model's load has stopped; most suspect first."""
        plan = self.planner.plans.get(model)
        if plan is None:
            return []
        names = find_culprits(self.builder.part, plan, self.planner.stood_down[model].reasons)
        return [name for name in names if self.settings.QWEN_LOAD_THREADS or not name.startswith(READER)]

    def retreat(self, model: str, failure: Failure) -> None:
        """Have the model planned without what has failed. Raises a transient `LoadError` where nothing is left."""
        plan, off = self.planner.plans.get(model), self.planner.stood_down[model]
        at = f" while loading {self.builder.part}" if self.builder.part else ""
        culprits = self.find_culprits(model)
        if plan and failure.out_of_memory and plan.device == "cuda":
            images = int(any(planned.edits for planned in plan.models))
            off.max_bytes = plan.peak_bytes(1024, 1024, images, tiled=True) - 1
            name = ROOM
        elif culprits and not failure.out_of_memory:
            name = culprits[0]
        else:
            raise off.explain(LoadError(f"{failure.reason}{at}", transient=True))
        off.reasons[name] = f"{failure.reason}{at}"
        log_line(None, "WARN", f"{label_of(model)} is loaded without {name} from now on: {failure.reason}{at}")
        if plan and plan.swapped:
            self.unload_all()  # the others' transformers wait for room that a plan of this model alone would take
        self.planner.forget(self.loaded.values())

    def find_prepared(self, checkpoint: Checkpoint, plan: Plan) -> tuple[Path | None, str]:
        """The prepared checkpoint to load in the checkpoint's place, if any, and its name or why there is none."""
        if checkpoint.transformer:
            return None, f"not looked for: the transformer is {checkpoint.transformer.label}"
        if not self.settings.QWEN_LOAD_THREADS:
            return None, "not looked for: QWEN_LOAD_THREADS=0"
        roots, gpu = self.settings.QWEN_MODEL_ROOTS, read_machine().gpu
        found = attempt(lambda: prepared.find(checkpoint, plan, roots, gpu, self.settings.QWEN_PREPARED))
        return (None, f"not found: {found.reason}") if isinstance(found, Failure) else found

    def build(
        self,
        model: str,
        checkpoint: Checkpoint,
        plan: Plan,
        shared: dict[str, Any],
        folder: Path | None,
        note: str,
        loras: Sequence[LoraUse],
    ) -> "tuple[Any, ModulationTable | None, str]":
        """The pipeline, its table, and the note which prepared checkpoint they are from, or why they are from none.

        A prepared checkpoint in `folder` may prove damaged only as its weights are read: its source is loaded then.
        Raises `LoadError` where there is no source to load instead.
        """
        beside_others = any(loaded.plan is not plan for loaded in self.loaded.values())
        off = self.planner.stood_down[model]

        def build_from(folder: Path | None) -> "tuple[Any, ModulationTable | None]":
            own, reasons = tuple(loras), dict(off.reasons)
            load = TransformerLoad(model, checkpoint, plan, folder, self.settings, own, reasons)
            self.second_card.begin_load(load)
            return self.builder.build(model, checkpoint, plan, shared, folder, beside_others, off)

        if folder and checkpoint.folder is None:
            return (*build_from(folder), note)
        if folder:
            try:
                built = attempt(lambda: build_from(folder))
            except LoadError as failure:
                built = Failure(failure.reason)
            if not isinstance(built, Failure):
                return (*built, note)
            note = f"{folder.name} is not used: {built.reason}"
            self.release(model, plan.device)
        return (*build_from(None), note)

    def activate(self, loaded: LoadedPipeline) -> float:
        """Bring the pipeline's transformer to the card if it is swapped; the seconds that it took.

        Raises `JobError` out_of_memory where the card has no room for it, and `CudaSpoiledError`.
        """
        # After a plan in which models take turns has failed, one may be loaded that does not.
        if self.builder.swap is None or not loaded.plan.swapped:
            return 0.0
        bring = functools.partial(self.builder.swap.activate, loaded.model)
        try:
            with self.second_card.activating(loaded.model):
                seconds = attempt(bring)
                if isinstance(seconds, Failure):  # no transformer is on the card then, and perhaps more of it is free
                    self.builder.give_back(loaded.plan.device)
                    seconds = attempt(bring)
        except CudaSpoiledError as error:
            raise self.blame(loaded, error) from None
        if isinstance(seconds, Failure):
            code = "out_of_memory" if seconds.out_of_memory else "internal"
            raise JobError(code, f"{loaded.checkpoint.name} could not be brought to the card: {seconds.reason}")
        return seconds

    def shared_components(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Components of pipelines already loaded that equal this checkpoint's, by name."""
        shared: dict[str, Any] = {}
        for other in self.loaded.values():
            for name in other.components_for(checkpoint):
                shared.setdefault(name, other.pipe.components[name])
        return shared
