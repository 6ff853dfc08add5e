"""The LoRAs that a picture is drawn with: the job's, its preset's and the endpoint's own, opened and checked.

Called on side threads, so that fetching and reading keep no other job from being drawn. Imports no torch itself. Knows
nothing of how LoRAs are applied; that is in `adapters.py`.
"""

import threading
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..errors import InvalidInput, JobError, LoadError
from ..jobs.job import Job, Stage
from ..jobs.presets import FAST_LORAS, require_adaptable
from ..log import log_line
from ..memory.footprint import GB
from ..model_settings import Role
from ..network.fetch import FetchTarget
from ..preset_settings import Preset, steps_in
from ..settings import Settings, hub_home
from ..stopwatch import timed
from .fetch import FETCH_FAILED, LoraFetcher
from .file import LoraFile, LoraUse, open_lora
from .places import LocalFile, default_lora, local_file

OWN_BYTES = 20_000_000_000  # the most of a LoRA that the endpoint's settings name
FOLDER = "qwen-image-loras"  # of fetched files, below HF_HOME


class Loras:
    """For any thread."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.fetcher = LoraFetcher(
            hub_home() / FOLDER,
            round(settings.QWEN_LORA_CACHE_GB * GB),
            settings.QWEN_MODEL_ROOTS,
            settings.QWEN_LORA_SECONDS,
        )
        self.own_files: dict[str, LoraFile] = {}  # by the path in the settings; each is opened once, and stays open

    def open_for_job(self, job: Job, checkpoint: Checkpoint | None) -> tuple[LoraUse, ...]:
        """The LoRAs of a job's pictures, its preset's first, without those that the endpoint always adds.

        Raises `invalid_input`, `lora_fetch_failed`, for a preset's LoRA `model_unavailable`, or `Cancelled`.
        """
        request = job.request
        require_adaptable(request, checkpoint)
        if request.loras and not self.settings.QWEN_LORA_MB:
            raise InvalidInput("loras are not taken by this endpoint: its QWEN_LORA_MB is 0")
        job.enter(Stage.OPENING)
        uses: list[LoraUse] = []
        with timed(job.timings, "input"):
            if request.preset == Preset.FAST:
                file = self.open_for_preset(FAST_LORAS[Role.of(request.task)])
                uses.append(LoraUse(file, 1.0, "the preset's LoRA", from_settings=True))
            for number, lora in enumerate(request.loras):
                label = f"loras[{number}]"
                use = LoraUse(self.open(lora.path, label, job.cancelled), lora.scale, label)
                uses.append(use)
                for warning in use.file.warnings:
                    job.warn(f"{label} {warning}")
        return tuple(uses)

    def open_for_preset(self, setting: str) -> LoraFile:
        """The LoRA that a setting names. Raises `model_unavailable`: what is wrong with it is no fault of the job's."""
        try:
            return self.open_own(getattr(self.settings, setting), setting)
        except JobError as error:
            raise JobError("model_unavailable", error.sentence) from None

    def open_for_endpoint(self, role: str) -> tuple[LoraUse, ...]:
        """The LoRAs of every picture of a role's model. Raises `LoadError`."""
        uses: list[LoraUse] = []
        for number, lora in enumerate(self.settings.QWEN_LORAS):
            if lora.task in (None, role):
                label = f"QWEN_LORAS[{number}]"
                if steps_in(lora.path):
                    words = f"{label} is a few-step LoRA by its name, and is drawn on the model's own schedule"
                    log_line(None, "WARN", f"{words}: {FAST_LORAS[role]} and QWEN_PRESET=fast draw it on its own")
                try:
                    uses.append(LoraUse(self.open_own(lora.path, label), lora.scale, label, from_settings=True))
                except JobError as error:
                    raise LoadError(error.sentence, transient=error.code == FETCH_FAILED) from None
        return tuple(uses)

    def open(self, text: str, label: str, cancelled: threading.Event) -> LoraFile:
        """The LoRA that a job's path names. Raises `invalid_input`, `lora_fetch_failed` or `Cancelled`."""
        wanted = FetchTarget(label, round(self.settings.QWEN_LORA_MB * 1e6), FETCH_FAILED)
        return open_found(self.fetcher.find(text, wanted, self.settings.QWEN_LORA_ROOTS, cancelled), label)

    def open_own(self, text: str, label: str) -> LoraFile:
        """The LoRA that a path of the settings names, which may also lead to any file or folder of this machine.

        Raises `invalid_input` or `lora_fetch_failed`.
        """
        if text not in self.own_files or self.own_files[text].is_changed():
            wanted, path = FetchTarget(label, OWN_BYTES, FETCH_FAILED), Path(text).expanduser()
            if path.is_dir():
                name = default_lora(file.name for file in path.iterdir())
                if name is None:
                    raise InvalidInput(f"{label} names a folder that does not hold one .safetensors file")
                path = path / name
            file = local_file(path, wanted) if path.is_file() else self.fetcher.find(text, wanted, ())
            self.own_files[text] = open_found(file, label)
            for warning in self.own_files[text].warnings:
                log_line(None, "WARN", f"{label} {warning}")
        return self.own_files[text]


def open_found(file: LocalFile, label: str) -> LoraFile:
    """Raises what `open_lora` raises."""
    return open_lora(file.path, file.key, label, file.config, file.warnings)
