"""The endpoint's two models: which checkpoint each of them is, located once. Loads nothing.

Knows nothing of where a model goes and how it is loaded.
"""

from ..checkpoints import checkpoint as checkpoints
from ..checkpoints import remote, search
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.classes import WEIGHTS
from ..checkpoints.files import is_folder, label_of
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
        self.download: tuple[Checkpoint, int] | None = None  # what is being downloaded, and the bytes of its weights

    def model_for(self, task: str) -> str:
        """The setting that names the task's model; in one spelling, where both settings name the same repository."""
        image_model, edit_model = self.settings.QWEN_IMAGE_MODEL, self.settings.QWEN_EDIT_MODEL
        return image_model if Role.of(task) is Role.GENERATE or is_same_model(image_model, edit_model) else edit_model

    def label_for(self, task: str) -> str:
        """The model's name as a caller may see it."""
        return label_of(self.model_for(task))

    def labels(self) -> dict[str, str]:
        """The names of the endpoint's models, by task."""
        return {role.value: self.label_for(role.value) for role in Role if role in self.settings.QWEN_TASKS}

    def located(self, task: str) -> Checkpoint | None:
        """The task's checkpoint, where it has been located before."""
        return self.checkpoints.get(self.model_for(task))

    def locate(self, task: str) -> Checkpoint:
        """What serves the task, from this machine's files, the table of released checkpoints or the hub.

        Downloads no weights. Raises `LoadError` where it is not found or serves another task.
        """
        model = self.model_for(task)
        if model not in self.checkpoints:
            roots = self.settings.QWEN_MODEL_ROOTS
            local = search.find(model, roots) or prepared.find_source(model, roots)
            self.checkpoints[model] = local or checkpoints.released(model) or remote.look_up(model)
        checkpoint = self.checkpoints[model]
        if task not in checkpoint.pipeline_class.tasks:
            raise LoadError(f"{checkpoint.name} is a {checkpoint.class_name}, which does not serve {task}")
        return checkpoint

    def fetch(self, task: str) -> Checkpoint:
        """The task's checkpoint, its files on this machine. Raises `LoadError`, as where the disk is too small."""
        checkpoint = self.locate(task)
        needed_bytes = sum(checkpoint.parameters.values()) * 2  # the released checkpoints are bfloat16
        needed_bytes += sum(checkpoint.packed.get(component, 0) for component in WEIGHTS)
        missing_bytes = max(0, needed_bytes - remote.fetched_bytes(checkpoint))
        require_disk(checkpoint.name, missing_bytes, free_disk_bytes(hub_cache_folder()))
        self.download = checkpoint, needed_bytes
        try:
            self.checkpoints[self.model_for(task)] = checkpoint = remote.download(checkpoint)
        finally:
            self.download = None
        return checkpoint

    def download_state(self) -> dict[str, int]:
        """Bytes that are on the disk of what is being downloaded, and of how many; {} where nothing is."""
        if not (download := self.download):
            return {}
        checkpoint, needed_bytes = download
        return {"bytes": min(remote.fetched_bytes(checkpoint), needed_bytes), "total_bytes": needed_bytes}


def is_same_model(model: str, other: str) -> bool:
    """Whether two model settings name one repository of the hub at one revision."""
    (hub_id, _, revision), (other_id, _, other_revision) = model.partition("@"), other.partition("@")
    return not is_folder(model) and revision == other_revision and is_same_repository(hub_id, other_id)
