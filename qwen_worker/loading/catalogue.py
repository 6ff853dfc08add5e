"""The endpoint's models: which checkpoint each of them is, located once. Loads nothing.

Knows nothing of where a model goes and how it is loaded.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints import checkpoint as checkpoints
from ..checkpoints import composed, remote, search, transformer_source
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.classes import WEIGHTS
from ..checkpoints.files import is_folder, label_of
from ..checkpoints.transformer_source import TransformerSource
from ..errors import LoadError
from ..memory.machine import free_disk_bytes
from ..memory.placement import require_disk
from ..model_settings import Role
from ..network.hub import hub_cache_folder, is_same_repository
from ..settings import Settings
from . import prepared


class Catalogue:
    """`locate` and `fetch` are for the one inference thread; the other methods only read, on any thread."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.checkpoints: dict[str, Checkpoint] = {}  # by model setting, once they are located
        self.sources: dict[str, TransformerSource] = {}  # by model setting: of transformers from elsewhere
        self.scratch: Path | None = None  # a folder of links and headers, for as long as this lives
        # What is being downloaded, the bytes of its weights, and how many of them are on the disk.
        self.download: tuple[int, Callable[[], int]] | None = None

    def model_for(self, task: str) -> str:
        """The setting that names the task's model; in one spelling, where both settings name the same repository."""
        image_model, edit_model = self.settings.QWEN_IMAGE_MODEL, self.settings.QWEN_EDIT_MODEL
        if Role.of(task) is Role.LAYERS:
            if not (layered_model := self.settings.QWEN_LAYERED_MODEL):
                raise LoadError("QWEN_LAYERED_MODEL names no model")
            return layered_model
        return image_model if Role.of(task) is Role.GENERATE or is_same_model(image_model, edit_model) else edit_model

    def transformer_for(self, task: str) -> str | None:
        """The setting of the transformer that stands for the task's model's own, if any; a layered model keeps its own.

        Raises `LoadError` where one model would have two.
        """
        if Role.of(task) is Role.LAYERS:
            return None
        chosen = {
            Role.GENERATE: self.settings.QWEN_IMAGE_TRANSFORMER, Role.EDIT: self.settings.QWEN_EDIT_TRANSFORMER
        }  # fmt: skip
        if self.model_for(Role.GENERATE.value) != self.model_for(Role.EDIT.value):
            return chosen[Role.of(task)]
        named = {text for role, text in chosen.items() if text and role in self.settings.QWEN_TASKS}
        if len(named) > 1:
            model = self.label_for(task)
            raise LoadError(f"QWEN_IMAGE_TRANSFORMER and QWEN_EDIT_TRANSFORMER differ, and {model} serves both tasks")
        return next(iter(named), None)

    def label_for(self, task: str) -> str:
        """The model's name as a caller may see it."""
        return label_of(self.model_for(task))

    def labels(self) -> dict[str, str]:
        """The names of the endpoint's models, by task."""
        return {role.value: self.label_for(role.value) for role in Role if role in self.settings.served_roles}

    def located(self, task: str) -> Checkpoint | None:
        """The task's checkpoint, where it has been located before."""
        return self.checkpoints.get(self.model_for(task))

    def report(self) -> dict[str, dict[str, Any]]:
        """For `health`: by task, of the checkpoints that are known, what they are and what jobs have by default."""
        known = {task: self.located(task) or checkpoints.released(self.model_for(task)) for task in self.labels()}
        return {task: checkpoint.report() for task, checkpoint in known.items() if checkpoint}

    def locate(self, task: str) -> Checkpoint:
        """What serves the task, from this machine's files, the table of released checkpoints or the hub.

        Downloads no weights. Raises `LoadError` where it is not found or serves another task.
        """
        model = self.model_for(task)
        if model not in self.checkpoints:
            roots = self.settings.QWEN_MODEL_ROOTS
            if transformer := self.transformer_for(task):
                self.checkpoints[model] = self.with_transformer(model, transformer)
            else:
                local = search.find(model, roots) or prepared.find_source(model, roots)
                self.checkpoints[model] = local or checkpoints.released(model) or remote.look_up(model)
        checkpoint = self.checkpoints[model]
        if task not in checkpoint.pipeline_class.tasks:
            raise LoadError(f"{checkpoint.name} is a {checkpoint.class_name}, which does not serve {task}")
        return checkpoint

    def with_transformer(self, model: str, text: str) -> Checkpoint:
        """The model with the transformer that the setting's text names. Downloads no weights. Raises `LoadError`."""
        if self.scratch is None:
            self.scratch = Path(tempfile.mkdtemp(prefix="qwen-image-"))
            weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)
        scratch, roots = self.scratch, self.settings.QWEN_MODEL_ROOTS
        if model not in self.sources:
            self.sources[model] = transformer_source.locate(text, roots, scratch)
        return composed.attach(model, self.sources[model], roots, scratch)

    def fetch(self, task: str) -> Checkpoint:
        """The task's checkpoint, its files on this machine. Raises `LoadError`, as where the disk is too small."""
        checkpoint, model = self.locate(task), self.model_for(task)
        source = self.sources.get(model)
        own = WEIGHTS
        if source:
            is_here = composed.is_base_here(model, self.settings.QWEN_MODEL_ROOTS)
            own = () if is_here else tuple(name for name in WEIGHTS if name != composed.COMPONENT)
        # The released checkpoints are bfloat16.
        needed_bytes = sum(2 * checkpoint.parameters.get(name, 0) + checkpoint.packed.get(name, 0) for name in own)
        if checkpoint.stored_bytes and not source:
            needed_bytes = checkpoint.stored_bytes
        source_bytes = source.size if source else 0

        def fetched_bytes() -> int:
            """A repository's folder in the cache may hold more than what is needed of it."""
            fetched_source_bytes = transformer_source.fetched_bytes(source) if source else 0
            return min(remote.fetched_bytes(checkpoint), needed_bytes) + min(fetched_source_bytes, source_bytes)

        missing_bytes = max(0, needed_bytes + source_bytes - fetched_bytes())
        require_disk(checkpoint.name, missing_bytes, free_disk_bytes(hub_cache_folder()))
        self.download = needed_bytes + source_bytes, fetched_bytes
        try:
            self.checkpoints[model] = checkpoint = self.download_all(checkpoint, model)
        finally:
            self.download = None
        return checkpoint

    def download_all(self, checkpoint: Checkpoint, model: str) -> Checkpoint:
        """The checkpoint, downloaded. Raises `LoadError`."""
        if model not in self.sources:
            return remote.download(checkpoint)
        # The transformer first: it is the larger, and may not be what the setting's writer meant.
        self.sources[model] = transformer_source.fetch(self.sources[model])
        composed.download(checkpoint, model, self.settings.QWEN_MODEL_ROOTS)
        return self.with_transformer(model, "")

    def download_state(self) -> dict[str, int]:
        """Bytes that are on the disk of what is being downloaded, and of how many; {} where nothing is."""
        if not (download := self.download):
            return {}
        total_bytes, fetched_bytes = download
        return {"bytes": fetched_bytes(), "total_bytes": total_bytes}


def is_same_model(model: str, other: str) -> bool:
    """Whether two model settings name one repository of the hub at one revision."""
    (hub_id, _, revision), (other_id, _, other_revision) = model.partition("@"), other.partition("@")
    return not is_folder(model) and revision == other_revision and is_same_repository(hub_id, other_id)
