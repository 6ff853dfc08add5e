"""What a photo of fifty megapixels, edited in a part, takes of the worker's memory, and its seconds beside the model's.

Each case runs in a process of its own, from the text of a job to the reply that would be posted; in the place of the
model stands one colour. Measured is the most that the process holds, less what it held before the job: the text of the
job, the photo, its result and both files. Megabytes are millions of bytes.
"""

import argparse
import base64
import io
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLOCK = 40  # pixels of a side of what has one colour, where a lossless file is to have room in a job
MASK_SIDE = 1000  # pixels of the mask in the middle
GROWN = 100  # pixels on the right
QUALITY = 10  # of a JPEG of noise: 10 MB for 49 megapixels
SMALL = (1400, 1000)  # of the photo that a process takes first, for what is made and imported once
LIMIT = 10**9  # bytes of a reply


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=int, default=7000, help="pixels, of square photos (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="only these (default: all)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    rows = [measure(name, (options.side, options.side)) for name in options.cases]
    if options.output.exists():  # the rows of other cases stay in it
        rows += [row for row in json.loads(options.output.read_text())["rows"] if row["case"] not in options.cases]
    return rows, {"side": options.side}


def noise(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def deep(size: tuple[int, int]) -> bytes:
    """A PNG of 16 bits."""
    from qwen_worker.pictures.deep import write_png

    width, height = size
    shape = (height // BLOCK + 1, width // BLOCK + 1, 3)
    numbers = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    return write_png(numbers.repeat(BLOCK, 0)[:height].repeat(BLOCK, 1)[:, :width], [])


def corners(size: tuple[int, int]) -> Image.Image:
    """A mask of a pixel in each corner."""
    mask = Image.new("1", size)
    for x in (0, size[0] - 1):
        for y in (0, size[1] - 1):
            mask.putpixel((x, y), 1)
    return mask


def middle(size: tuple[int, int]) -> Image.Image:
    """A mask of a square in the middle, as large as the model draws."""
    mask = Image.new("1", size)
    left, top = ((side - MASK_SIDE) // 2 for side in size)
    mask.paste(1, (left, top, left + MASK_SIDE, top + MASK_SIDE))
    return mask


Size = tuple[int, int]
# The photo, the mask, and how many bytes a pixel of the photo has. Without a mask the canvas grows, by `GROWN` pixels.
CASES: dict[str, tuple[Callable[[Size], bytes], Callable[[Size], Image.Image] | None, int]] = {
    "noise, a mask in the middle": (noise, middle, 3),
    "noise, a mask in every corner": (noise, corners, 3),
    "noise, a canvas that grows": (noise, None, 3),
    "16 bits, a mask in the middle": (deep, middle, 6),
    "16 bits, a mask in every corner": (deep, corners, 6),
    "16 bits, a canvas that grows": (deep, None, 6),
}


def measure(name: str, size: Size) -> dict:
    """The row of a case: its photo, and what a process of its own has taken."""
    photo_of, mask_of, pixel_bytes = CASES[name]
    with tempfile.TemporaryDirectory() as folder, one_process() as process:
        jobs = []
        for number, sides in enumerate((SMALL, size)):
            photo, mask = Path(folder, f"{number}.photo"), mask_of and Path(folder, f"{number}.mask")
            photo.write_bytes(photo_of(sides))
            if mask_of and mask:
                mask_of(sides).save(mask, "PNG")
            jobs.append((photo, mask))
        found = process.submit(growth, jobs).result()
        file_mb = jobs[-1][0].stat().st_size / 1e6
    photo_bytes = size[0] * size[1] * pixel_bytes
    rates = {stage: round(grown / photo_bytes, 2) for stage, grown in found["grown"].items()}
    return {"case": name, "megapixels": round(size[0] * size[1] / 1e6, 1), "file, MB": round(file_mb, 1)} | {
        "photo, MB": round(photo_bytes / 1e6), "most, MB": round(found["grown"]["sent"] / 1e6),
        "times the photo, opened": rates["opened"], "times the photo, sent": rates["sent"],
        "seconds": round(found["seconds"], 1), "reply, MB": round(found["reply_bytes"] / 1e6, 1),
    }  # fmt: skip


def one_process() -> ProcessPoolExecutor:
    """A process that imports all anew."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def growth(jobs: list[tuple[Path, Path | None]]) -> dict[str, Any]:
    """By stage, the bytes by which this process has grown at most in the last job; the jobs' photos and masks."""
    from qwen_worker.memory.machine import resident_bytes

    for photo, mask in jobs[:-1]:
        answer(photo, mask)
    before, started = resident_bytes(), time.perf_counter()
    peaks, reply = answer(*jobs[-1])
    grown = {stage: peak - before for stage, peak in peaks.items()}
    return {"grown": grown, "seconds": time.perf_counter() - started, "reply_bytes": len(reply["image"])}


def answer(photo: Path, mask: Path | None) -> tuple[dict[str, int], dict[str, Any]]:
    """The most bytes that this process has had up to each stage, and the reply."""
    from qwen_worker.jobs.job import Job
    from qwen_worker.jobs.named_sizes import Grid
    from qwen_worker.jobs.parsing import parse
    from qwen_worker.pictures.canvas import canvas_of
    from qwen_worker.pictures.delivery import deliver, terms_of, terms_of_photo
    from qwen_worker.pictures.inputs import open_images
    from qwen_worker.settings import Settings

    fields = {"mask": text_of(mask)} if mask else {"expand": {"right": GROWN}}
    job, never = Job("job", parse({"prompt": "a", "image": text_of(photo), **fields}, "job")), threading.Event()
    inputs = open_images(job.request, 1, job.warn)
    assert inputs.stitch, "a photo of more than a megapixel is cut"
    peaks = {"opened": peak_bytes()}
    terms = terms_of({"id": "job"}, job.request, Settings(), LIMIT, None)
    terms = terms_of_photo(job.request, inputs.stitch, terms, job.warn, never)
    canvas = canvas_of(job, inputs, Grid(32))
    drawn = canvas.finish(Image.new("RGB", canvas.size, "red"))
    reply = deliver(job.request, [drawn], terms, lambda facts: {**facts, "backend": "qwen-image"}, {}, never)
    peaks["sent"] = peak_bytes()
    return peaks, reply


def text_of(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def peak_bytes() -> int:
    """The most that this process has had in memory: `getrusage` would count what its parent had before it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
