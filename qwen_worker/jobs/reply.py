"""The reply of a job that drew: its fields, and how large it will be on its way.

Knows nothing of how the pictures came about, nor of how they reach the caller (`delivery.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired

from typing_extensions import TypedDict  # before Python 3.12 pydantic reads no TypedDict of typing

from ..errors import LoadError, hide_secrets
from ..model_settings import Gpus
from ..preset_settings import Preset
from ..settings import Settings
from .few_steps import takes_few_steps
from .field_types import Lora
from .request import Drawing, Generate
from .tasks import Layers

if TYPE_CHECKING:
    from PIL import Image

MESSAGES = {
    "generate": "Image generated",
    "edit": "Image edited",
    "background_replacement": "Background replaced",
    "layers": "Image taken apart into layers",
}
STAND_IN_MESSAGE = "The model could not be loaded: this is a PIL stand-in, not a generated image"


@dataclass(frozen=True)
class DrawingModel:
    """The loaded model that drew, as replies name it."""

    name: str
    revision: str | None
    caches_steps: bool  # whether preset `balanced` has its step cache
    on_card: bool
    stood_down: tuple[str, ...] = ()  # what of the worker's own it does without, because that failed


@dataclass(frozen=True)
class DrawingResult:
    """What a job's turn on the inference thread has brought: pictures of the model, or stand-ins and why."""

    pictures: "list[Image.Image]"
    steps: int  # of each picture
    model: DrawingModel | None = None  # None for stand-ins
    failure: LoadError | None = None  # why the pictures are stand-ins
    peak_vram_gb: float | None = None
    recomposition_db: float | None = None  # of layers: how near they come to the picture again
    batch: int = 1  # how many pictures shared the pipeline's call; where the job had several calls, the first one's
    gpus: int = 1  # how many cards the transformer's passes were computed on
    controlnet: str | None = None  # the name of the ControlNet that they follow their control pictures by


class LoraUsed(TypedDict):
    """One of the job's LoRAs, as the reply names it."""

    path: str
    scale: float
    strength: NotRequired[float]  # scale x alpha / rank, where it is one for all layers
    strength_range: NotRequired[list[float]]  # else the least and the most


class RegistrationFacts(TypedDict):
    """Where an edit lies on its input: in pixels of the result, right and down of it, and larger by `scale`."""

    shift_x: float
    shift_y: float
    scale: float
    confidence: float  # from 0 to 1
    aligned: NotRequired[bool]


class ColourDrift(TypedDict):
    """Levels by which red, green and blue of an edit were off its input's where it is unchanged."""

    mean: NotRequired[list[float]]
    histogram: NotRequired[list[float]]
    undone: NotRequired[bool]


class Lineage(TypedDict):
    """SHA-256 in hexadecimal digits of the files of an edit, and `round`, from 1, where an input has our mark."""

    inputs: list[str]
    outputs: list[str]
    round: NotRequired[int]


class ControlUsed(TypedDict):
    """What the drawing followed, as the reply names it; each list has one entry for each control picture."""

    model: str
    types: list[str | None]
    scales: list[float]
    preprocess: list[str]
    start: float
    end: float


class DrawingFacts(TypedDict):
    """The part of a reply's `metadata` that is known once the pictures are drawn; docs/jobs.md explains each field."""

    model: str
    revision: str | None
    backend: Literal["qwen-image", "pil-fallback"]
    prompt: str
    width: int
    height: int
    dimensions: str
    drawn_dimensions: NotRequired[str]
    crop: NotRequired[list[int]]  # left, top, right, bottom of the part that was drawn, in the result's pixels
    preset: str | None
    steps: int
    guidance_scale: float
    guidance_start: NotRequired[float]
    guidance_end: NotRequired[float]
    guided_steps: NotRequired[int]  # that took guidance's second pass, of each picture
    seed: int
    seeds: list[int]
    seed_text: NotRequired[str]
    seeds_text: NotRequired[list[str]]
    worker_version: str
    strength: NotRequired[float]
    expand: NotRequired[dict[str, int]]  # by how many pixels the canvas grew on each side
    instruction: NotRequired[str]
    background: NotRequired[Literal["transparent"]]  # where the files have transparency
    has_nsfw_concepts: NotRequired[list[bool]]
    registration: NotRequired[list["RegistrationFacts"]]
    colour_drift: NotRequired[list["ColourDrift | None"]]
    defaults: NotRequired[dict[str, Any]]
    loras: NotRequired[list[LoraUsed]]
    control: NotRequired[ControlUsed]
    step_cache: NotRequired[bool]
    num_layers: NotRequired[int]
    recomposition_db: NotRequired[float]
    stood_down: NotRequired[list[str]]
    fallback_reason: NotRequired[str]
    batch: NotRequired[int]
    gpus: NotRequired[int]
    peak_vram_gb: NotRequired[float | None]


class DeliveryFacts(TypedDict):
    """The part of a reply's `metadata` that is known once the pictures are encoded."""

    delivery: Literal["inline", "url"]
    output_format: str
    delivery_note: NotRequired[str]
    lineage: NotRequired[Lineage]  # of an edit


class Metadata(DrawingFacts, DeliveryFacts):
    """A reply's `metadata`."""

    has_nsfw_concepts: NotRequired[list[bool]]  # of each picture; only where something has looked at them
    warnings: NotRequired[list[str]]  # one sentence for each thing that was not done as the job asks
    processing_time: float  # seconds
    timings: dict[str, float]  # seconds by stage


class DrawingReply(TypedDict):
    """The reply of a job that drew: with its pictures in base64, or with their URLs; a list where there are several."""

    success: Literal[True]
    message: str
    image: NotRequired[str]
    images: NotRequired[list[str]]
    image_url: NotRequired[str]
    image_urls: NotRequired[list[str]]
    metadata: Metadata


def success_reply(
    request: Drawing, metadata: Metadata, pictures: list[str], field: Literal["image", "image_url"] = "image"
) -> dict[str, Any]:
    """The reply with `pictures`, in base64 or by their URLs: the first as `field`, all as its plural where several."""
    stand_in = metadata["backend"] == "pil-fallback"
    reply = {
        "success": True,
        "message": STAND_IN_MESSAGE if stand_in else MESSAGES[request.task],
        field: pictures[0],
        "metadata": metadata,
    }
    return reply | ({f"{field}s": pictures} if len(pictures) > 1 else {})


def drawing_facts(
    request: Drawing,
    size: tuple[int, int],
    drawn_size: tuple[int, int],
    result: DrawingResult,
    model: str,
    settings: Settings,
    lora_scalings: Sequence[tuple[float, float]] = (),
    instruction: str = "",
) -> DrawingFacts:
    """What is known of the pictures before they are encoded.

    `size`: width and height of the result in pixels; `drawn_size`: those at which the pipeline drew. `model`: the name
    to report where no model is loaded. `lora_scalings`: of each of the job's LoRAs, the least and the most of
    alpha / rank. `instruction`: the text that the model got, where it is not the request's own.
    """
    drawn_by = result.model
    facts: DrawingFacts = {
        "model": drawn_by.name if drawn_by else model,
        "revision": drawn_by.revision if drawn_by else None,
        "backend": "qwen-image" if drawn_by else "pil-fallback",
        "prompt": request.prompt,
        "width": size[0],
        "height": size[1],
        "dimensions": f"{size[0]}x{size[1]}",
        "preset": request.preset,
        "steps": result.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "seeds": request.seeds,
        "worker_version": settings.QWEN_WORKER_VERSION,
    }
    if request.has_large_seed:
        facts["seed_text"], facts["seeds_text"] = str(request.seed), [str(seed) for seed in request.seeds]
    if drawn_by and drawn_size != size:
        facts["drawn_dimensions"] = f"{drawn_size[0]}x{drawn_size[1]}"
    if drawn_by and request.limits_guidance:
        facts["guidance_start"], facts["guidance_end"] = request.guidance_start, request.guidance_end
        facts["guided_steps"] = len(request.guided_steps(result.steps))
    add_facts_of_task(facts, request, result)
    if (instruction := instruction or request.instruction) != request.prompt:
        facts["instruction"] = instruction
    if request.loras:
        scalings = [*lora_scalings, *[None] * len(request.loras)] if drawn_by else [None] * len(request.loras)
        facts["loras"] = [lora_used(lora, scaling) for lora, scaling in zip(request.loras, scalings, strict=False)]
    add_facts_of_worker(facts, request, result, settings)
    return facts


def add_facts_of_task(facts: DrawingFacts, request: Drawing, result: DrawingResult) -> None:
    """What only some tasks or pictures have."""
    if request.images and not isinstance(request, Layers):
        facts["strength"] = request.strength
    if request.expand:
        facts["expand"] = request.expand.model_dump()
    if isinstance(request, Layers):
        facts["num_layers"] = request.num_layers
    if result.recomposition_db is not None:
        facts["recomposition_db"] = result.recomposition_db
    if result.controlnet and isinstance(request, Generate):
        facts["control"] = control_used(request, result.controlnet)
    if request.background and any(picture.mode == "RGBA" for picture in result.pictures):
        facts["background"] = "transparent"


def add_facts_of_worker(facts: DrawingFacts, request: Drawing, result: DrawingResult, settings: Settings) -> None:
    """How the worker came to draw the pictures as it did."""
    drawn_by = result.model
    if result.failure:
        facts["fallback_reason"] = result.failure.reason
    if drawn_by and request.preset == Preset.BALANCED:
        facts["step_cache"] = drawn_by.caches_steps and not takes_few_steps(request)
    if drawn_by and settings.QWEN_BATCH > 1:
        facts["batch"] = result.batch
    if drawn_by and settings.QWEN_GPUS is not Gpus.ONE:
        facts["gpus"] = result.gpus
    if drawn_by and drawn_by.stood_down:
        facts["stood_down"] = list(drawn_by.stood_down)
    if drawn_by and drawn_by.on_card:
        facts["peak_vram_gb"] = result.peak_vram_gb


def control_used(request: Generate, model: str) -> ControlUsed:
    """`model`: the ControlNet's name."""
    controls = request.controls
    return {
        "model": model,
        "types": [control.kind for control in controls],
        "scales": [control.scale for control in controls],
        "preprocess": [control.preprocess for control in controls],
        "start": request.control_start,
        "end": request.control_end,
    }


def lora_used(lora: Lora, scaling: tuple[float, float] | None) -> LoraUsed:
    """`scaling`: the least and the most of the layers' alpha / rank; None for a LoRA that nothing was drawn with."""
    used: LoraUsed = {"path": hide_secrets(lora.path), "scale": lora.scale}
    if scaling:
        least, most = sorted(float(f"{lora.scale * bound:.6g}") for bound in scaling)
        if least == most:
            used["strength"] = least
        else:
            used["strength_range"] = [least, most]
    return used


def complete_metadata(
    facts: DrawingFacts, timings: dict[str, float], warnings: Sequence[str], delivery: DeliveryFacts
) -> Metadata:
    """The facts, those of the delivery, and the warnings and the seconds of each stage so far."""
    metadata: Metadata = {
        **facts,
        **delivery,
        "processing_time": round(sum(timings.values()), 3),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
    }
    if warnings:
        metadata["warnings"] = list(warnings)
    return metadata


def posted_bytes(reply: Mapping[str, Any]) -> int:
    """The size of the body that the SDK posts for this reply: its own JSON, in UTF-8."""
    return len(json.dumps({"output": reply}, ensure_ascii=False).encode("utf-8", "surrogatepass"))
