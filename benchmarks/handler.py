"""What the worker adds to the bare pipeline call: parsing, seeds, encoding, the reply; on the tiny checkpoint.

The seconds inside the pipeline's own `__call__` are taken out of each job's, so the model's speed does not matter. The
alternative is the same job with the picture encoded as `PNG optimize=True`, as many workers do.
"""

import argparse
import asyncio
import base64
import inspect
import io
import os
import statistics
import time
from typing import Any

from .measure.full_size import TINY


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=1024, help="side in pixels (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=8, help="few steps draw noise, which encodes slower (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="jobs after a warm-up (default: %(default)s)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    from qwen_worker.settings import Settings
    from runpod_handler import Worker

    os.environ["RUNPOD_DEBUG_LEVEL"] = "ERROR"
    worker = Worker(Settings(QWEN_IMAGE_MODEL=str(TINY / "generate"), QWEN_EDIT_MODEL=str(TINY / "edit")))
    pipe = worker.pipelines.load("generate").pipe
    inside = timed_calls(pipe)
    fields = {
        "prompt": "a small red circle on the left, on a blue background",
        "num_inference_steps": options.steps,
        "seed": 1,
    }
    fields |= {"width": options.size, "height": options.size}
    ours, optimized = [], []
    for k in range(options.repeats + 1):
        started = time.perf_counter()
        reply = asyncio.run(worker.answer({"id": f"job-{k}", "input": fields}))
        added = time.perf_counter() - started - inside.pop()
        png, encoding = base64.b64decode(reply["image"]), reply["metadata"]["timings"]["encode"]
        if k:  # the first loads and warms up
            ours.append(added)
            optimized.append(added - encoding + optimize(png))
    medians = [statistics.median(values) * 1000 for values in (ours, optimized)]
    rows = [
        {"handler": name, "added ms (median)": round(value, 1), "ratio": round(value / medians[0], 2)}
        for name, value in zip(("ours", "PNG optimize=True"), medians, strict=True)
    ]
    return rows, {"size": options.size, "steps": options.steps, "repeats": options.repeats}


def timed_calls(pipe: Any) -> list[float]:
    """Time every call of the pipeline from here on: the seconds, which grow by one entry a call."""
    seconds: list[float] = []
    stock = type(pipe)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = stock.__call__(self, *args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    call.__signature__ = inspect.signature(stock.__call__)
    pipe.__class__ = type(stock.__name__, (stock,), {"__call__": call})
    return seconds


def optimize(png: bytes) -> float:
    """Seconds to encode the picture in base64 of a PNG with `optimize=True`."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    started = time.perf_counter()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    base64.b64encode(buffer.getvalue()).decode("ascii")
    return time.perf_counter() - started
