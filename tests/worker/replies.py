"""Twenty jobs whose whole replies are recorded beside this module: what callers get shows any change of the code.

    python -m tests.worker.replies           write `recorded/` anew, after a change that is meant
    python -m tests.worker.replies --compare compare byte for byte, for changes that must not show on one machine

What `test_replies.py` holds is looser: processors round differently, so pictures may differ a little there.
Knows nothing of how the worker answers.
"""

import base64
import functools
import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded"
TINY = ROOT / "models/tiny-qwen-image"
FEW_STEP = TINY / "few-step/tiny-qwen-image-4steps.safetensors"
# What differs from one run to the next, wherever it stands in a reply.
VOLATILE = ("processing_time", "timings", "worker_version", "created", "lineage")
MEASURED = (
    "environment",
    "memory_usage",
    "load_seconds",
    "stages",
    "seconds",
    "packages",
    "python_version",
    "platform",
)


@functools.cache
def scene(size: int = 256, turned: bool = False) -> str:
    """A disc on a plain background as base64 of a PNG; `turned`: a mask, white on its right half."""
    picture = Image.new("RGB", (size, size), "black" if turned else "blue")
    pen = ImageDraw.Draw(picture)
    if turned:
        pen.rectangle((size // 2, 0, size, size), fill="white")
    else:
        pen.ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="red")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def jobs() -> dict[str, tuple[dict, dict]]:
    """By name: settings that differ from the recorded endpoint's, and the job's input."""
    small = {"prompt": "a large red circle in the center, on a blue background", "width": 256, "height": 256}
    draw = {**small, "num_inference_steps": 4, "seed": 7}
    edit = {**draw, "prompt": "make the background green", "image": scene(), "draw_size": "asked"}
    forced = {"QWEN_FALLBACK": "force"}
    return {
        "generate": ({}, draw),
        "seed_from_the_id": ({}, {**small, "num_inference_steps": 2}),
        "two_images_webp": ({}, {**draw, "num_images": 2, "output_format": "webp"}),
        "jpeg_and_aliases": ({}, {"prompt": "a green triangle", "size": "320x256", "steps": 3, "cfg": 2, "seed": 1,
                                  "output_format": "jpeg", "output_compression": 80}),
        "negative_prompt": ({}, {**draw, "negative_prompt": "yellow", "guidance_scale": 6}),
        "balanced": ({}, {**draw, "preset": "balanced", "num_inference_steps": 10}),
        "fast": ({}, {**small, "seed": 7, "preset": "fast"}),
        "lora": ({}, {**draw, "loras": [{"path": FEW_STEP.name, "scale": 0.5}]}),
        "edit": ({}, {name: value for name, value in edit.items() if name != "draw_size"}),
        "edit_strength": ({}, {**edit, "strength": 0.5}),
        "edit_mask": ({}, {**edit, "mask_image": scene(turned=True)}),
        "background_replacement": ({}, {**edit, "task": "background_replacement", "prompt": "a plain green wall"}),
        "openai_generations": ({}, {"openai_route": "/v1/images/generations", "openai_input": {
            "prompt": "a red circle", "size": "256x256", "num_inference_steps": 2, "seed": 3}}),
        "openai_refused": ({}, {"openai_route": "/v1/images/edits", "openai_input": {"prompt": "x", "mask": "y"}}),
        "stand_in": (forced, draw),
        "stand_in_edit": (forced, {**edit, "prompt": "blur it"}),
        "refused_fields": ({}, {"prompt": "", "width": 1000, "colour": 1, "seed": -2}),
        "refused_lora": ({}, {**draw, "loras": [{"path": "nobody.safetensors"}]}),
        "refused_picture": ({}, {**edit, "image": "bm90IGEgcGljdHVyZQ=="}),
        "health": (forced, {"task": "health"}),
    }  # fmt: skip


COUNTED = {"health": ("stand_in", "stand_in_edit")}  # jobs that come first, because the reply tells how many there were


def posted(name: str, workers: dict[tuple, object]) -> dict:
    """What the SDK posts for the job. `workers`: by their settings, those made so far; one is added where needed."""
    import runpod_handler
    from qwen_worker.settings import Settings

    from ..conftest import run

    overrides, fields = jobs()[name]
    key = tuple(overrides.items())
    if key not in workers:
        endpoint = {"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit"),
                    "QWEN_MODEL_ROOTS": (), "QWEN_IMAGE_FAST_LORA": str(FEW_STEP),
                    "QWEN_LORA_ROOTS": (FEW_STEP.parent,)}  # fmt: skip
        workers[key] = runpod_handler.Worker(Settings(**endpoint | overrides))
    return run(workers[key], fields, job_id=name)


def steady(value):
    """A reply without what differs from one run to the next; figures that are measured become their type's name."""
    if isinstance(value, list):
        return [steady(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: type(one).__name__ if name in MEASURED else steady(one)
        for name, one in value.items()
        if name not in VOLATILE
    }


def recorded(name: str) -> dict:
    return json.loads((RECORDED / f"{name}.json").read_text())


def main() -> None:
    workers: dict[tuple, object] = {}
    different = []
    for name in jobs():
        reply = steady(posted(name, workers))
        if "--compare" not in sys.argv:
            (RECORDED / f"{name}.json").write_text(json.dumps(reply, indent=1) + "\n")
        elif reply != recorded(name):
            different.append(name)
    if "--compare" in sys.argv:
        sys.exit(f"Replies differ: {', '.join(different)}" if different else print(f"{len(jobs())} replies are equal"))


if __name__ == "__main__":
    main()
