"""The LoRAs that a picture is drawn with: the job's, its preset's and the endpoint's own, opened and checked.

On side threads: what is fetched or read here keeps no other job from being drawn. How they are applied is in
`adapters.py`. Imports no torch itself.
"""

import threading
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..errors import InvalidInput, JobError, LoadError
from ..jobs.job import Job, Stage
from ..jobs.presets import FAST_LORAS, require_adaptable
from ..memory.footprint import GB
from ..network.fetch import Wanted
from ..preset_settings import Preset
from ..settings import Role, Settings, hub_home
from ..stopwatch import timed
from .fetch import CODE, LoraFetcher, local, only_lora
from .file import LoraFile, LoraUse, opened

OWN_BYTES = 20_000_000_000  # of a LoRA that the endpoint's settings name
FOLDER = "qwen-image-loras"  # below HF_HOME


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
        self.own: dict[str, LoraFile] = {}  # by its text in the settings: opened once, and held

    def of_job(self, job: Job, checkpoint: Checkpoint | None) -> tuple[LoraUse, ...]:
        """What a job's pictures are drawn with, its preset's LoRA first, beside what the endpoint always adds.

        Raises `invalid_input`, `lora_fetch_failed`, for a preset's LoRA `model_unavailable`, or `Cancelled`.
        """
        request = job.request
        require_adaptable(request, checkpoint)
        if request.loras and not self.settings.QWEN_LORA_MB:
            raise InvalidInput("loras are not taken by this endpoint: its QWEN_LORA_MB is 0")
        job.enter(Stage.OPENING)
        uses = []
        with timed(job.timings, "input"):
            if request.preset == Preset.FAST:
                uses.append(
                    LoraUse(self.of_preset(FAST_LORAS[Role.of(request.task)]), 1.0, "the preset's LoRA", own=True)
                )
            for number, lora in enumerate(request.loras):
                label = f"loras[{number}]"
                uses.append(LoraUse(self.open(lora.path, label, job.cancelled), lora.scale, label))
        return tuple(uses)

    def of_preset(self, setting: str) -> LoraFile:
        try:
            return self.open_own(getattr(self.settings, setting), setting)
        except JobError as error:  # no fault of the job's
            raise JobError("model_unavailable", error.sentence) from None

    def of_endpoint(self, role: str) -> tuple[LoraUse, ...]:
        """What every picture of the role's model is drawn with. Raises `LoadError`."""
        uses = []
        for number, lora in enumerate(self.settings.QWEN_LORAS):
            if lora.task in (None, role):
                label = f"QWEN_LORAS[{number}]"
                try:
                    uses.append(LoraUse(self.open_own(lora.path, label), lora.scale, label, own=True))
                except JobError as error:
                    raise LoadError(error.sentence, passing=error.code == CODE) from None
        return tuple(uses)

    def open(self, text: str, label: str, cancelled: threading.Event) -> LoraFile:
        wanted = Wanted(label, round(self.settings.QWEN_LORA_MB * 1e6), CODE)
        return opened(*self.fetcher.find(text, wanted, self.settings.QWEN_LORA_ROOTS, cancelled), label)

    def open_own(self, text: str, label: str) -> LoraFile:
        """As a job's, and from anywhere on this disk."""
        if text not in self.own or self.own[text].changed():
            wanted, path = Wanted(label, OWN_BYTES, CODE), Path(text).expanduser()
            if path.is_dir():
                name = only_lora(one.name for one in path.iterdir())
                if name is None:
                    raise InvalidInput(f"{label} names a folder that does not hold one .safetensors file")
                path = path / name
            found = local(path, wanted) if path.is_file() else self.fetcher.find(text, wanted, ())
            self.own[text] = opened(*found, label)
        return self.own[text]
