"""Loads diffusers pipelines as the placement says and keeps them: one a checkpoint, equal components once in memory.

torch, diffusers and transformers are imported here and in `inference.py`, `inpainting.py`, inside functions: importing
the pipeline classes costs over ten seconds of CPU on a cold worker. Decides nothing about jobs or fallbacks.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoints import checkpoint as checkpoints
from ..checkpoints import remote
from ..checkpoints.checkpoint import WEIGHTS, Checkpoint
from ..checkpoints.files import label_of, read_json, shards
from ..checkpoints.sharing import as_model, in_common
from ..errors import JobError, LoadError
from ..jobs.reply import Drawer
from ..lora.file import LoraUse
from ..memory import cuda, placement
from ..memory.footprint import GB, Plan
from ..memory.machine import disk_free, read_machine
from ..network.hub import cache_folder
from ..settings import Role, Settings
from ..speed import speedups
from ..speed.speedups import Speed
from ..stopwatch import Stopwatch
from . import libraries, prepared
from .components import Reading, is_component, load_component, require_tokenizer, tabulate, trim
from .page_cache import reading_ahead

AHEAD_SHARE = 0.8  # of the RAM that a plan leaves, for weights that are read while the libraries are imported


@dataclass(frozen=True)
class Loaded:
    """A pipeline ready to run."""

    model: str  # its setting: the key among the loaded
    checkpoint: Checkpoint
    plan: Plan
    pipe: Any = field(repr=False)  # a diffusers pipeline
    table: Any = field(repr=False)  # the `modulation.Table` that stands for its modulation layers, or None
    adapters: Any = field(repr=False)  # the `adapters.Adapters` of its transformer
    shared: tuple[str, ...]  # components that it has in common with a pipeline loaded before
    seconds: float
    stages: dict[str, float]  # where they went; `first_job` is added when it has been drawn
    prepared: str  # the name of the prepared checkpoint that it was loaded from, or why there is none
    speed: Speed  # what it is drawn faster by

    @property
    def drawer(self) -> Drawer:
        """What replies tell of it."""
        found = self.checkpoint
        return Drawer(found.name, found.revision, found.adaptable, self.plan.device == "cuda")

    def report(self) -> dict:
        """What `health` tells of it."""
        return {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "class": self.checkpoint.class_name,
            "device": self.plan.device,
            "precision": self.plan.precision.value,
            "plan": str(self.plan),
            "weights_gb": round(self.plan.weights / GB, 3),
            "speedups": {name.value: state for name, state in self.speed.states.items()},
            "loras": [{"setting": use.label, "scale": use.scale} for use in self.adapters.own],
            "shared": list(self.shared),
            "prepared": self.prepared,
            "load_seconds": round(self.seconds, 3),
            "stages": dict(self.stages),
        }


class Pipelines:
    """The pipelines of this worker. Not thread-safe: everything but `loaded` is for the one inference thread.

    `own_loras`: by role, what every picture is drawn with.
    """

    def __init__(self, settings: Settings, own_loras: Callable[[str], Sequence[LoraUse]] = lambda role: ()):
        self.settings, self.own_loras = settings, own_loras
        self.located: dict[str, Checkpoint] = {}  # by model setting
        self.placed: dict[str, Plan] = {}  # by model setting
        self.loaded: dict[str, Loaded] = {}  # by model setting
        self.turns = None  # the `residency.Turns` of transformers that share the card's room
        self.stage = ""  # what a load is busy with, for the words about one that fails
        self.stages = Stopwatch()  # of the present load, or the last
        self.machine = read_machine  # what plans are made for; a benchmark names a smaller card here

    def report(self) -> list[dict]:
        """What `health` tells of the loaded pipelines."""
        return [loaded.report() for loaded in list(self.loaded.values())]

    def model_for(self, task: str) -> str:
        return self.settings.QWEN_IMAGE_MODEL if Role.of(task) is Role.GENERATE else self.settings.QWEN_EDIT_MODEL

    def label_for(self, task: str) -> str:
        return label_of(self.model_for(task))

    def labels(self) -> dict[str, str]:
        """The names of the endpoint's models, by task."""
        return {role.value: self.label_for(role.value) for role in Role}

    def locate(self, task: str) -> Checkpoint:
        """What serves the task, from files here, the table of known checkpoints or the hub; downloads no weights."""
        model = self.model_for(task)
        if model not in self.located:
            roots = self.settings.QWEN_MODEL_ROOTS
            here = checkpoints.find(model, roots) or prepared.describe(model, roots)
            self.located[model] = here or checkpoints.known(model) or remote.look_up(model)
        found = self.located[model]
        if task not in found.pipeline_class.tasks:
            raise LoadError(f"{found.name} is a {found.class_name}, which does not serve {task}")
        return found

    def place(self, task: str) -> Plan:
        """Where the task's model goes. Raises `LoadError`, before anything is fetched or allocated, where it cannot.

        Planned for all models of the endpoint together, so that the first does not take the room of the second; for
        this one alone where together they do not fit or the other cannot be found.
        """
        model, found = self.model_for(task), self.locate(task)
        if model not in self.placed:
            together = {model: found} | self.others(model)
            resident = sum(one.plan.weights for one in self.loaded.values())
            try:
                plan = self.plan(together, resident)
            except LoadError:
                together = {model: found}
                plan = self.plan(together, resident)
            self.placed |= dict.fromkeys(together, plan)
        return self.placed[model]

    def others(self, model: str) -> dict[str, Checkpoint]:
        """The endpoint's other model, if it can be found and nothing has been placed without it."""
        found = {}
        for role in Role:
            other = self.model_for(role.value)
            if other != model and other not in self.placed:
                with contextlib.suppress(LoadError):
                    found[other] = self.locate(role.value)
        return found if not self.placed else {}

    def plan(self, together: dict[str, Checkpoint], resident: int) -> Plan:
        """`resident`: bytes that models planned before hold on the card."""
        cap = self.settings.QWEN_VRAM_GB
        models, before = [], [one.checkpoint for one in self.loaded.values()]
        for found in sorted(together.values(), key=lambda one: one.pipeline_class.max_images):
            models.append(as_model(found, before))
            before.append(found)
        return placement.plan(
            models,
            self.machine(),
            self.settings.QWEN_PRECISION,
            round(cap * GB) - resident if cap else None,
            self.settings.QWEN_SAVINGS,
            self.settings.own_loras,
        )

    def load(self, task: str) -> Loaded:
        """The task's pipeline, loaded on first use. Raises `LoadError`, before anything is fetched where it can."""
        model = self.model_for(task)
        if model not in self.loaded:
            started = time.perf_counter()
            self.stages = Stopwatch()
            plan, found = self.place(task), self.locate(task)
            folder, note = self.prepared_for(found, plan)
            if folder is None and found.folder is None:
                with self.stages("download"):
                    found = self.located[model] = self.download(found)
            with self.stages("compare"):
                shared = self.shared_components(found)
            own = self.own_loras(Role.of(task))
            built, damage = self.build_prepared(found, plan, shared, folder) if folder else (None, "")
            pipe, table = built or self.build(found, plan, shared)
            adapters = adapters_of(found, plan, pipe, table, own)
            self.stage = "speed-ups"
            with self.stages("compile"):
                speed = speedups.apply(pipe, plan, self.settings, self.machine(), table, found.name)
            self.stage = ""
            seconds = time.perf_counter() - started
            facts = (tuple(shared), seconds, self.stages.report(), damage or note, speed)
            self.loaded[model] = Loaded(model, found, plan, pipe, table, adapters, *facts)
        return self.loaded[model]

    def prepared_for(self, found: Checkpoint, plan: Plan) -> tuple[Path | None, str]:
        """The prepared checkpoint to load in its place, if any, and a word on it."""
        if not self.settings.QWEN_LOAD_THREADS:
            return None, "not looked for: QWEN_LOAD_THREADS=0"
        roots, gpu = self.settings.QWEN_MODEL_ROOTS, read_machine().gpu
        return prepared.find(found, plan, roots, gpu, self.settings.QWEN_PREPARED)

    def build_prepared(
        self, found: Checkpoint, plan: Plan, shared: dict[str, Any], folder: Path
    ) -> tuple[tuple[Any, Any] | None, str]:
        """(what `build` returns, "") or (None, why not): damage may show only as the weights are read.

        Raises `LoadError` where there is no source to load instead.
        """
        try:
            return self.build(found, plan, shared, folder), ""
        except LoadError as failure:
            if found.folder is None:
                raise
            reason = f"{folder.name} is not used: {failure.reason}"
        if self.turns:
            self.turns.drop(self.key_of(found))
        cuda.forget(plan.device)
        return None, reason

    def activate(self, loaded: Loaded) -> float:
        """Bring the pipeline's transformer to the card if it takes turns there; the seconds that it took."""
        return self.turns.activate(loaded.model) if self.turns else 0.0

    def download(self, found: Checkpoint) -> Checkpoint:
        needed = sum(found.parameters.values()) * 2  # the released checkpoints are bfloat16
        placement.require_disk(found.name, max(0, needed - remote.fetched_bytes(found)), disk_free(cache_folder()))
        return remote.download(found)

    def shared_components(self, found: Checkpoint) -> dict[str, Any]:
        """Components of pipelines already loaded that equal this checkpoint's, by name."""
        shared = {}
        for other in self.loaded.values():
            for name in in_common(found, other.checkpoint):
                # a model placed alone may have left out the vision that this one needs
                if name != "text_encoder" or other.plan.vision or not found.pipeline_class.max_images:
                    shared.setdefault(name, other.pipe.components[name])
        return shared

    def build(
        self, found: Checkpoint, plan: Plan, shared: dict[str, Any], folder: Path | None = None
    ) -> tuple[Any, Any]:
        """The diffusers pipeline of the checkpoint's own class, every component where the plan says, and its table.

        `folder`: read in place of the checkpoint's own.
        """
        source = replace(found, folder=folder or found.folder)
        index = read_json(source.folder, "model_index.json")
        names = [name for name in index if name not in shared and not name.startswith("_")]
        how = Reading(self.settings.QWEN_LOAD_THREADS, self.stages)
        room = read_machine().ram_available - plan.ram if how.threads else 0
        with self.stages("import"), reading_ahead(weight_files(source.folder, names), round(room * AHEAD_SHARE)):
            libraries.import_all(self.quantizers())
        import diffusers

        with self.stages("card"):
            self.claim_card(plan)
        components = dict(shared)
        for name in names:
            self.stage, value = name, index[name]
            components[name] = load_component(source, name, value, plan, how) if is_component(value) else value
            with self.stages("trim"):
                trim(components[name], name, plan)
        if plan.swapped:
            with self.stages("copy"):
                self.turns.add(self.key_of(found), components["transformer"])
        self.stage = "modulation"
        table = tabulate(components["transformer"], source, plan, how)
        self.stage = found.class_name
        with self.stages("other"):
            pipe = getattr(diffusers, found.class_name)(**components)
            require_tokenizer(found, pipe)
        pipe.set_progress_bar_config(disable=True)
        if plan.device == "cuda":
            cuda.release_buffers()
        return pipe, table

    def claim_card(self, plan: Plan) -> None:
        """Torch kept to the plan's share of the card, and nobody's turn there. Raises `LoadError` where it cannot."""
        from ..model import residency

        if plan.device == "cuda":
            cuda.cap_memory(plan.limit, beside=all(one.plan is not plan for one in self.loaded.values()))
            cuda.pin_exactly()
        if plan.swapped:
            self.turns = self.turns or residency.Turns(plan.device)
            self.turns.clear()
            cuda.forget(plan.device)

    def quantizers(self) -> frozenset[str]:
        """The packages that any plan of this worker may need: a model that is not placed yet may get another one."""
        plans = {self.placed.get(self.model_for(role.value)) for role in Role}
        precisions = [plan.precision if plan else self.settings.QWEN_PRECISION for plan in plans]
        return frozenset().union(*map(libraries.quantizers, precisions))

    def key_of(self, found: Checkpoint) -> str:
        return next(model for model, one in self.located.items() if one is found)


def adapters_of(found: Checkpoint, plan: Plan, pipe: Any, table: Any, own: Sequence[LoraUse]) -> Any:
    """What applies LoRAs to the pipeline's transformer. Raises `LoadError` where the endpoint's own do not fit it."""
    import torch

    from ..lora.adapters import Adapters

    made = Adapters(pipe.transformer, table, getattr(torch, plan.dtype), plan.device, found.name, own)
    try:
        made.require_fits(own)
        for use in own:
            made.held(use)
    except JobError as error:
        raise LoadError(error.sentence) from None
    return made


def weight_files(folder: Path, names: list[str]) -> list[Path]:
    """What holds the components' weights, in the order in which they are read."""
    return [file for name in names if name in WEIGHTS for file in shards(folder, name)] + list(
        folder.glob("*.safetensors")
    )
