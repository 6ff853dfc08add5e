"""The endpoint's ControlNet: located and compared with the transformer first, loaded when a job first needs it.

It is kept on the card where the plan has room for it beside the largest picture; else it waits in RAM, and is on the
card only while a job is drawn by it. Knows nothing of what is drawn.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints import controlnet as stored
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.controlnet import ControlNet
from ..checkpoints.files import label_of
from ..errors import JobError, LoadError
from ..jobs.control import MAX_CONTROLS
from ..jobs.request import Drawing
from ..jobs.tasks import MAX_LAYERS
from ..log import log_line
from ..memory import cuda
from ..memory.failures import Failure, attempt
from ..memory.footprint import BYTES, GB, MEGAPIXEL, Plan
from ..memory.machine import read_ram
from ..pictures.control import require_preprocessor
from ..settings import Settings

TOKENS = MEGAPIXEL // 256  # of a picture of a megapixel
LARGEST = 2048, 2048  # pixels of the largest picture of a job
LARGEST_LAYERS = 1024, 1024 * MAX_LAYERS, 2  # as `drawing/layers.py` plans the most layers of the largest picture


def controlnets_from_settings(settings: Settings) -> "ControlNets | None":
    """The endpoint's ControlNet, None where the settings name none."""
    model = settings.QWEN_CONTROLNET
    return ControlNets(model, settings.QWEN_MODEL_ROOTS) if model else None


class ControlNets:
    """`model`: the setting that names the ControlNet."""

    def __init__(self, model: str, roots: Sequence[Path]):
        self.model, self.roots = model, roots
        self.located: ControlNet | None = None
        self.module: Any = None  # of diffusers, once it is loaded

    @property
    def name(self) -> str:
        """As a caller may see it."""
        return label_of(self.model)

    def open_for_job(self, request: Drawing, checkpoint: Checkpoint | None) -> "ControlNets | None":
        """Itself, where the job needs a ControlNet; for any thread. `checkpoint`: what will draw, where that is known.

        Raises `JobError` model_unavailable where there is none for this transformer, and `InvalidInput`.
        """
        controls = getattr(request, "controls", ())
        if not controls:
            return None
        require_preprocessor(controls)
        try:
            self.located = located = self.located or stored.find(self.model, self.roots)
            if checkpoint:
                located.require_belongs(checkpoint)
        except LoadError as failure:
            raise unavailable(failure) from None
        return self

    def planned(self, plan: Plan) -> Plan:
        """The plan of a job that is drawn by it: with its weights, and with what it adds to the transformer."""
        assert self.located, "a job has opened it"
        residual_bytes = MAX_CONTROLS * self.located.blocks * TOKENS * self.located.width * BYTES[plan.base_precision]
        weight_bytes = self.located.parameters * BYTES[plan.base_precision]
        return plan.with_control(round(weight_bytes), round(residual_bytes))

    def is_kept_on_card(self, plan: Plan) -> bool:
        """Whether the card has room for it between jobs too, which do not count with it. `plan`: of the loaded one."""
        images = int(any(model.edits for model in plan.models))
        sizes = [(*LARGEST, images)] + [LARGEST_LAYERS] * any(model.captions for model in plan.models)
        return not any(self.planned(plan).needs_tiles(*size) for size in sizes)

    def load(self, checkpoint: Checkpoint, plan: Plan) -> None:
        """Have it loaded; on the inference thread. Raises `JobError` model_unavailable, or out_of_memory for RAM."""
        if self.module is not None:
            return
        assert self.located, "a job has opened it"
        try:
            self.located = located = stored.fetch(self.located)
            located.require_belongs(checkpoint)
        except LoadError as failure:
            raise unavailable(failure) from None
        device = plan.device if self.is_kept_on_card(plan) else "cpu"
        needed_bytes, (_, available_bytes) = located.parameters * BYTES[plan.base_precision], read_ram()
        if device == "cpu" and needed_bytes > available_bytes:
            figures = f"{needed_bytes / GB:.2f} GB of RAM; {available_bytes / GB:.2f} GB are free"
            raise JobError("out_of_memory", f"the ControlNet {located.name} needs {figures}")
        module = attempt(lambda: read(located, plan.dtype, device))
        if isinstance(module, Failure):
            cuda.release_unused(plan.device)
            code = "out_of_memory" if module.out_of_memory else "model_unavailable"
            raise JobError(code, f"the ControlNet {located.name} cannot be loaded: {module.reason}")
        self.module = module
        where = "the card" if device == "cuda" else "RAM" if plan.device == "cuda" else "the CPU"
        log_line(None, "INFO", f"ControlNet {located.name} loaded onto {where}: {needed_bytes / GB:.2f} GB")

    @contextmanager
    def on_device(self, plan: Plan) -> Generator[Any]:
        """Within, it is where the transformer computes. `plan`: of the loaded pipeline."""
        try:
            yield self.module.to(plan.device)
        finally:
            if not self.is_kept_on_card(plan):
                self.module.to("cpu")

    def report(self) -> dict[str, Any]:
        """What `health` tells of it."""
        located = self.located
        return {
            "model": self.name,
            "revision": located.revision if located else None,
            "loaded": self.module is not None,
            "device": str(self.module.device.type) if self.module is not None else None,
            "parameters": located.parameters if located else None,
        }


def read(controlnet: ControlNet, dtype: str, device: str) -> Any:
    """The module of diffusers. Raises `LoadError` where weights are missing, and what the library raises."""
    import torch
    from diffusers.models.controlnets.controlnet_qwenimage import QwenImageControlNetModel

    loaded: Any = QwenImageControlNetModel.from_pretrained(
        controlnet.folder,
        dtype=getattr(torch, dtype),
        device_map=device,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    module, report = loaded
    wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"])))
    if wrong:
        raise LoadError(f"{len(wrong)} of its weights are missing or no part of the class, {wrong[0][:80]} among them")
    return module.eval().requires_grad_(False)


def unavailable(failure: LoadError) -> JobError:
    return JobError("model_unavailable", f"the ControlNet cannot be had: {failure.reason}")
