"""Loads diffusers pipelines as the placement says and keeps them: one a checkpoint, equal components once in memory.

torch, diffusers and transformers are imported here and in `inference.py`, `inpainting.py`, inside functions: importing
the pipeline classes costs over ten seconds of CPU on a cold worker. Decides nothing about jobs or fallbacks.
"""

import importlib
import time
from dataclasses import dataclass, field
from typing import Any

from . import checkpoint as checkpoints
from . import hub, placement
from .checkpoint import Checkpoint
from .checkpoint_files import label_of, read_json
from .errors import LoadError
from .machine import disk_free, read_machine
from .settings import Settings
from .sharing import SHAREABLE, same_component

LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Loaded:
    """A pipeline ready to run."""

    checkpoint: Checkpoint
    plan: placement.Plan
    pipe: Any = field(repr=False)  # a diffusers pipeline
    shared: tuple[str, ...]  # components that it has in common with a pipeline loaded before
    seconds: float


class Pipelines:
    """The pipelines of this worker. Not thread-safe: everything but `loaded` is for the one inference thread."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.located: dict[str, Checkpoint] = {}  # by model setting
        self.loaded: dict[str, Loaded] = {}  # by model setting
        self.stage = ""  # what a load is busy with, for the words about one that fails

    def model_for(self, task: str) -> str:
        return self.settings.QWEN_IMAGE_MODEL if task == "generate" else self.settings.QWEN_EDIT_MODEL

    def label_for(self, task: str) -> str:
        return label_of(self.model_for(task))

    def locate(self, task: str) -> Checkpoint:
        """What serves the task, from files here, the table of known checkpoints or the hub; downloads no weights."""
        model = self.model_for(task)
        if model not in self.located:
            roots = (*self.settings.QWEN_MODEL_ROOTS, hub.cache_folder())
            self.located[model] = checkpoints.find(model, roots) or checkpoints.known(model) or hub.look_up(model)
        found = self.located[model]
        if task not in found.pipeline_class.tasks:
            raise LoadError(f"{found.name} is a {found.class_name}, which does not serve {task}")
        return found

    def load(self, task: str) -> Loaded:
        """The task's pipeline, loaded on first use. Raises `LoadError`, before anything is fetched where it can."""
        model = self.model_for(task)
        if model not in self.loaded:
            started = time.perf_counter()
            found = self.locate(task)
            if found.folder is None:
                self.plan(found, self.likely_shared(found))  # refuses before the download
                found = self.located[model] = self.download(found)
            shared = self.shared_components(found)
            plan = self.plan(found, tuple(shared))
            pipe = self.build(found, plan, shared)
            self.stage = ""
            self.loaded[model] = Loaded(found, plan, pipe, tuple(shared), time.perf_counter() - started)
        return self.loaded[model]

    def plan(self, found: Checkpoint, shared: tuple[str, ...] = ()) -> placement.Plan:
        cap = self.settings.QWEN_VRAM_GB
        return placement.plan(
            found.name,
            {name: count for name, count in found.parameters.items() if name not in shared},
            read_machine(),
            self.settings.QWEN_PRECISION,
            round(cap * placement.GB) if cap else None,
            resident=sum(one.plan.weights for one in self.loaded.values()),
        )

    def likely_shared(self, found: Checkpoint) -> tuple[str, ...]:
        """Before its files are here: what has as many parameters as a loaded pipeline's, as within a family."""
        return tuple(
            name
            for name in SHAREABLE
            if any(one.checkpoint.parameters.get(name) == found.parameters.get(name) for one in self.loaded.values())
        )

    def download(self, found: Checkpoint) -> Checkpoint:
        needed = sum(found.parameters.values()) * 2  # the released checkpoints are bfloat16
        placement.require_disk(found.name, max(0, needed - hub.fetched_bytes(found)), disk_free(hub.cache_folder()))
        return hub.download(found)

    def shared_components(self, found: Checkpoint) -> dict[str, Any]:
        """Components of pipelines already loaded that equal this checkpoint's, by name."""
        shared = {}
        for name in SHAREABLE:
            ours = found.folder / name
            for other in self.loaded.values():
                theirs = other.checkpoint.folder / name
                if ours.is_dir() and theirs.is_dir() and same_component(ours, theirs):
                    shared[name] = other.pipe.components[name]
                    break
        return shared

    def build(self, found: Checkpoint, plan: placement.Plan, shared: dict[str, Any]) -> Any:
        """The diffusers pipeline of the checkpoint's own class, with every component on its device."""
        import diffusers
        import torch
        import transformers

        if plan.device == "cuda" and not torch.cuda.is_available():
            raise LoadError("there is a GPU here that torch cannot use: the driver is older than torch's CUDA")
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        components = dict(shared)
        for name, value in read_json(found.folder, "model_index.json").items():
            if name in components or name.startswith("_"):
                continue
            self.stage = name
            components[name] = load_component(found, name, value, plan) if is_component(value) else value
        self.stage = found.class_name
        pipe = getattr(diffusers, found.class_name)(**components)
        require_tokenizer(found, pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def is_component(value: Any) -> bool:
    """model_index.json holds [library, class] for a component, and plain values for the pipeline's own settings."""
    return isinstance(value, list) and len(value) == 2 and value[0] in LIBRARIES


def load_component(found: Checkpoint, name: str, value: list[str], plan: placement.Plan) -> Any:
    import torch

    library, class_name = value
    module = importlib.import_module(library)
    if not hasattr(module, class_name):
        raise LoadError(f"{found.name} needs {class_name}, which the installed {library} does not have")
    load = getattr(module, class_name).from_pretrained
    if name not in checkpoints.WEIGHTS:
        return load(found.folder / name, local_files_only=True)
    # Weights go straight to the device: no second copy in RAM on the way to a GPU.
    options = {"dtype": getattr(torch, plan.dtype), "device_map": plan.device, "local_files_only": True}
    if library != "transformers":
        return load(found.folder / name, **options)
    model, report = load(found.folder / name, output_loading_info=True, **options)
    # transformers fills what is missing with random numbers. The language head is never used.
    missing = sorted(set(report["missing_keys"]) - {"lm_head.weight"})
    if missing:
        raise LoadError(f"{name}/ lacks {len(missing)} of its weights, {missing[0]} among them")
    return model


def require_tokenizer(found: Checkpoint, pipe: Any) -> None:
    """transformers makes an empty tokenizer of files that it cannot read, and every prompt nothing."""
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.processor.tokenizer
    if not tokenizer("a").input_ids:
        raise LoadError(f"{found.name} has a tokenizer without a vocabulary")
