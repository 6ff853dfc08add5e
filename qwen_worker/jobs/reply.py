"""The reply of a job that drew: its fields, and how large it will be on its way.

Knows nothing of how the pictures came about, nor of how they leave (`delivery.py`).
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import LoadError
from ..preset_settings import Preset
from ..settings import Settings
from .request import Drawing, Edit
from .sources import without_secrets

if TYPE_CHECKING:
    from PIL import Image

MESSAGES = {
    "generate": "Image generated",
    "edit": "Image edited",
    "background_replacement": "Background replaced",
}
STAND_IN_MESSAGE = "The model could not be loaded: this is a PIL stand-in, not a generated image"


@dataclass(frozen=True)
class Drawer:
    """The loaded model that drew, as replies name it."""

    name: str
    revision: str | None
    caches_steps: bool  # whether preset `balanced` has its step cache
    on_card: bool


@dataclass(frozen=True)
class Drawn:
    """What came of a job's turn on the inference thread."""

    pictures: "list[Image.Image]"
    steps: int  # that each took
    drawer: Drawer | None = None  # what drew them; None for a stand-in
    failure: LoadError | None = None  # why there is none
    peak_vram_gb: float | None = None
    batch: int = 1  # pictures that shared their call; of several calls, those of the first


def success(request: Drawing, metadata: dict, pictures: list[str], field: str = "image") -> dict:
    """`field` (`image` or `image_url`) is the first picture, in base64 or by its URL; its plural all, where several."""
    stand_in = metadata["backend"] == "pil-fallback"
    reply = {
        "success": True,
        "message": STAND_IN_MESSAGE if stand_in else MESSAGES[request.task],
        field: pictures[0],
        "metadata": metadata,
    }
    return reply | ({f"{field}s": pictures} if len(pictures) > 1 else {})


def metadata_of(request: Drawing, size: tuple[int, int], drawn: Drawn, model: str, settings: Settings) -> dict:
    """What is known of the pictures before they are encoded. `model`: the name to report when none is loaded."""
    drawer = drawn.drawer
    facts = {
        "model": drawer.name if drawer else model,
        "revision": drawer.revision if drawer else None,
        "backend": "qwen-image" if drawer else "pil-fallback",
        "prompt": request.prompt,
        "width": size[0],
        "height": size[1],
        "dimensions": f"{size[0]}x{size[1]}",
        "preset": request.preset,
        "steps": drawn.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "seeds": request.seeds,
        "worker_version": settings.QWEN_WORKER_VERSION,
    }
    if isinstance(request, Edit):
        facts["strength"] = request.strength
    if request.instruction != request.prompt:
        facts["instruction"] = request.instruction
    if request.loras:
        facts["loras"] = [{"path": without_secrets(one.path), "scale": one.scale} for one in request.loras]
    if drawer and request.preset == Preset.BALANCED:
        facts["step_cache"] = drawer.caches_steps
    if drawn.failure:
        facts["fallback_reason"] = drawn.failure.reason
    if drawer and settings.QWEN_BATCH > 1:
        facts["batch"] = drawn.batch
    if drawer and drawer.on_card:
        facts["peak_vram_gb"] = drawn.peak_vram_gb
    return facts


def with_timings(facts: dict, timings: dict[str, float], more: dict) -> dict:
    """The facts, what more is known by now, and the seconds of each stage so far."""
    return (
        facts
        | more
        | {
            "processing_time": round(sum(timings.values()), 3),
            "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        }
    )


def posted_bytes(reply: dict) -> int:
    """The size of the body that the SDK posts for this reply: its own JSON, in UTF-8."""
    return len(json.dumps({"output": reply}, ensure_ascii=False).encode("utf-8", "surrogatepass"))
