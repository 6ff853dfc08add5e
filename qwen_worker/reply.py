"""The reply of a job that drew: its fields, and the check that the platform will deliver it.

Knows nothing of how the pictures came about.
"""

import json

from .errors import JobError, LoadError
from .pipelines import Loaded
from .request import Drawing, Edit

MESSAGES = {
    "generate": "Image generated",
    "edit": "Image edited",
    "background_replacement": "Background replaced",
}
STAND_IN_MESSAGE = "The model could not be loaded: this is a PIL stand-in, not a generated image"


def success(request: Drawing, encoded: list[str], metadata: dict, limit_mb: float) -> dict:
    """`image` is the first picture in base64, `images` all of them when there are several."""
    stand_in = metadata["backend"] == "pil-fallback"
    reply = {
        "success": True,
        "message": STAND_IN_MESSAGE if stand_in else MESSAGES[request.task],
        "image": encoded[0],
        "metadata": metadata,
    }
    if len(encoded) > 1:
        reply["images"] = encoded
    require_deliverable(reply, limit_mb)
    return reply


def metadata_of(request: Drawing, size: tuple[int, int], steps: int, loaded: Loaded | None, model: str) -> dict:
    """What is known of the pictures before they are encoded. `model`: the name to report when none is loaded."""
    facts = {
        "model": loaded.checkpoint.name if loaded else model,
        "revision": loaded.checkpoint.revision if loaded else None,
        "backend": "qwen-image" if loaded else "pil-fallback",
        "prompt": request.prompt,
        "width": size[0],
        "height": size[1],
        "dimensions": f"{size[0]}x{size[1]}",
        "steps": steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "seeds": request.seeds,
    }
    if isinstance(request, Edit):
        facts["strength"] = request.strength
    if request.instruction != request.prompt:
        facts["instruction"] = request.instruction
    return facts


def with_timings(facts: dict, timings: dict[str, float], failure: LoadError | None) -> dict:
    """The facts with the seconds of each stage and, for a stand-in, the reason."""
    facts |= {
        "processing_time": round(sum(timings.values()), 3),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
    }
    return facts | ({"fallback_reason": failure.reason} if failure else {})


def require_deliverable(reply: dict, limit_mb: float) -> None:
    """The platform drops a result that is too large without a word, so it is measured before it goes."""
    pictures = [reply["image"], *reply.get("images", [])]
    without = {name: value for name, value in reply.items() if name not in ("image", "images")}
    # Base64 is ASCII and escapes nothing: its length is its size; 8 covers each picture's quotes and separators.
    size = sum(len(picture) + 8 for picture in pictures) + len(json.dumps(without)) + 32
    if size > limit_mb * 1e6:
        raise JobError(
            "result_too_large",
            f"the reply has {size / 1e6:.1f} MB and at most {limit_mb:g} MB are delivered; "
            "ask for output_format jpeg or webp with output_quality, fewer images or a smaller size",
        )
