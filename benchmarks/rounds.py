"""Edits one after another of one picture: what is left of what no prompt asked to be changed.

Each round edits another place of the result of the round before, on the tiny checkpoint: once with a mask around the
place, and once without a mask. PSNR is in dB over 8-bit RGB against the first picture, of all places that no round was
to change; it is infinite where every pixel is equal.
"""

import argparse
import asyncio
import base64
import io
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .measure.full_size import TINY

COLUMNS, PLACE = 4, 160  # places in a row; pixels of a side of each
PROMPTS = ("make the background green", "make the circle yellow", "a red circle on a blue background")
LOSSLESS_DB = "infinite"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=10, help="edits of each picture (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of each (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1600, help="of the picture in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=1200, help="of the picture in pixels (default: %(default)s)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    import runpod_handler
    from qwen_worker.settings import Settings

    models = {"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit"), "QWEN_MODEL_ROOTS": ()}
    worker = runpod_handler.Worker(Settings(**models, QWEN_RESULT_LIMIT_MB=100))
    photo = picture(options.width, options.height)
    places = list(itertools.islice(places_in(photo.size), options.rounds))
    untouched = np.ones(photo.size[::-1], bool)
    for left, top in places:
        untouched[top : top + PLACE, left : left + PLACE] = False
    rows = []
    results = dict.fromkeys(("with masks", "without masks"), photo)
    for number, place in enumerate(places, 1):
        row: dict = {"round": number}
        for way in results:
            fields = {"prompt": PROMPTS[number % len(PROMPTS)], "image": text_of(results[way]), "seed": number,
                      "num_inference_steps": options.steps, "output_format": "png"}  # fmt: skip
            if way == "with masks":
                mask = Image.new("L", photo.size)
                mask.paste(255, (*place, place[0] + PLACE, place[1] + PLACE))
                fields["mask_image"] = text_of(mask)
            reply = asyncio.run(worker.answer({"id": f"{way} {number}", "input": fields}))
            if "error" in reply:
                raise SystemExit(reply["error"])
            results[way] = Image.open(io.BytesIO(base64.b64decode(reply["image"])))
            row[f"{way}: untouched, dB"] = psnr(results[way], photo, untouched)
            row[f"{way}: size"] = reply["metadata"]["dimensions"]
        rows.append(row)
    return rows, {"steps": options.steps, "size": f"{photo.width}x{photo.height}", "prompts": PROMPTS}


def picture(width: int, height: int) -> Image.Image:
    """Something of fine and coarse detail: discs on noise."""
    noise = Image.effect_noise((width, height), 50).filter(ImageFilter.GaussianBlur(1.5)).convert("RGB")
    pen = ImageDraw.Draw(noise)
    for left, top in places_in(noise.size):
        pen.ellipse((left + 20, top + 20, left + PLACE - 20, top + PLACE - 20), fill=(left % 256, top % 256, 128))
    return noise


def places_in(size: tuple[int, int]):
    """The upper left corner of each place, row by row."""
    step = size[0] // COLUMNS
    for top in range(step // 4, size[1] - PLACE, step // 2 + PLACE // 2):
        for left in range(step // 4, size[0] - PLACE, step):
            yield left, top


def psnr(found: Image.Image, first: Image.Image, where: np.ndarray) -> float | str:
    """In dB, of the pixels `where`; a picture of another size is brought to the first one's."""
    found = found.convert("RGB")
    found = found if found.size == first.size else found.resize(first.size, Image.Resampling.LANCZOS)
    error = (np.asarray(found, np.float64) - np.asarray(first, np.float64))[where]
    squared = float(np.mean(error**2))
    return round(10 * math.log10(255**2 / squared), 2) if squared else LOSSLESS_DB


def text_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
