"""Edits that lie on their input: the frame of odd sizes, shifts and scales measured and undone, colours brought back.

Every case is made here, so that what is right is known. `framing`: a grid of discs, of the width and the height of an
input, goes through the tiny checkpoint's VAE as an edit of that size does, and comes back; the pixels are those of the
result by which a disc's middle is off. All sizes are drawn with a quarter of the worker's pixels, and some with all of
them, as a VAE takes long on a CPU: a side's rounding to the grid counts twice as much in the former. `alignment`:
pixels by which a corner of an edit lies off its input, before and after it is moved back. `colours`: levels between an
edit's mean and that of the same edit without its drift.
A part with a count of 0 is left out, and its rows stay in the file. One that is out of time has fewer cases.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .measure.full_size import TINY

DISC, GROUND = np.array((220.0, 40.0, 40.0)), np.array((40.0, 80.0, 220.0))
ACROSS = 3  # discs along the shorter side
SIZES = ((640, 512), (1024, 768), (576, 576), (416, 704))  # of the pictures that are altered
HALF = 0.5  # pixels
# By the side of the square whose area is drawn, the share of the sizes: the worker's own side is the last.
DRAWN_SIDES = {512: 1.0, 1024: 0.1}
LONGEST = 3000  # pixels of the longer side of an input, where the worker's own area is drawn
PARTS = {"sizes": ("framing",), "edits": ("alignment", "unrelated"), "drifts": ("colours",)}  # how their rows begin


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, default=200, help="input sizes (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=200, help="shifted, and unrelated ones (default: %(default)s)")
    parser.add_argument("--drifts", type=int, default=60, help="edits of other colours (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    rows = [
        *framing(options.sizes, options.seed, options.seconds),
        *alignment(options.edits, options.seed, options.seconds),
        *colours(options.drifts, options.seed, options.seconds),
    ]
    if options.output.exists():
        idle = tuple(name for count, names in PARTS.items() if not getattr(options, count) for name in names)
        rows += [row for row in json.loads(options.output.read_text())["rows"] if row["what"].startswith(idle)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "-") for name in columns} for row in rows], {"seed": options.seed}


def within(count: int, seconds: float) -> Iterator[int]:
    """The numbers of so many cases, as far as there is time to begin them."""
    end = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > end:
            return
        yield number


def framing(count: int, seed: int, seconds: float = math.inf) -> Iterator[dict]:
    """For each side of `DRAWN_SIDES` a row of so many odd sizes, or of their share."""
    vae = tiny_vae() if count else None
    for side, of_all in DRAWN_SIDES.items():
        rng, longest = np.random.default_rng(seed), round(LONGEST * side / 1024)
        numbers = within(round(of_all * count), seconds)
        errors = [framing_error(vae, *odd_size(rng, longest), side) for _ in numbers]
        if errors:
            row = {"what": f"framing, drawn at {side}x{side}", "cases": len(errors)}
            yield row | spread(errors) | {"within half a pixel": share(errors)}


def odd_size(rng: np.random.Generator, longest: int) -> tuple[int, int]:
    """Width and height of an input: up to `longest` pixels, up to 8 times as long as wide, multiples of nothing."""
    longer, ratio = rng.integers(150, longest), 2 ** rng.uniform(0, 2.9)
    sides = int(longer) | 1, max(40, int(longer / ratio)) | 1
    return sides if rng.random() < 0.5 else sides[::-1]


def framing_error(vae: Any, width: int, height: int, side: int) -> float:
    """The pixels of the result by which the middle of a disc is off, at most. `side`: of the square of its area."""
    from qwen_worker.pictures.inset import inset_of
    from qwen_worker.pictures.sizes import CONDITIONING_MULTIPLE

    source, middles, reach = grid_of_discs(width, height)
    inset = inset_of(source.size, side * side, CONDITIONING_MULTIPLE)
    result = inset.take_out(round_trip(vae, inset.place(source)), source.size)
    assert result.size == (width, height)
    return max(
        float(np.hypot(*(middle_of(result, *middle, reach) - middle_of(source, *middle, reach)))) for middle in middles
    )


def grid_of_discs(width: int, height: int) -> tuple[Image.Image, list[tuple[float, float]], int]:
    """Red discs on blue, their middles, and the pixels around each middle that are its own."""
    step = min(width, height) / ACROSS
    columns, rows = round(width / step), round(height / step)
    fine = Image.new("RGB", (4 * width, 4 * height), tuple(GROUND.astype(int)))
    cells = [(k % columns, k // columns) for k in range(columns * rows)]
    middles = [((column + 0.5) * width / columns, (row + 0.5) * height / rows) for column, row in cells]
    for x, y in middles:
        box = [4 * (x - 0.3 * step), 4 * (y - 0.3 * step), 4 * (x + 0.3 * step), 4 * (y + 0.3 * step)]
        ImageDraw.Draw(fine).ellipse(box, fill=tuple(DISC.astype(int)))
    return fine.resize((width, height), Image.Resampling.BOX), middles, int(0.45 * step)


def middle_of(picture: Image.Image, x: float, y: float, reach: int) -> np.ndarray:
    """(x, y) of the middle of what is red around a point, weighted by how red each pixel is."""
    left, top = max(0, round(x - reach)), max(0, round(y - reach))
    pixels = np.asarray(picture.crop((left, top, left + 2 * reach + 1, top + 2 * reach + 1)), float)
    towards = DISC - GROUND
    red = ((pixels - GROUND) @ towards / (towards @ towards)).clip(0, 1)
    red[red < 0.15] = 0
    down, right = np.indices(red.shape) + 0.5
    return np.array([(red * right).sum(), (red * down).sum()]) / red.sum() + (left, top)


def tiny_vae() -> Any:
    """The tiny edit checkpoint's, for single pictures as the worker has it."""
    from diffusers import AutoencoderKLQwenImage

    from qwen_worker.model.vae import skip_feature_cache, use_2d_convolutions

    vae = AutoencoderKLQwenImage.from_pretrained(TINY / "edit" / "vae")
    skip_feature_cache(vae)
    use_2d_convolutions(vae)
    return vae


def round_trip(vae: Any, picture: Image.Image) -> Image.Image:
    import torch

    pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1  # (1, 3, 1, H, W)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    return Image.fromarray(((decoded[0, :, 0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy())


def alignment(count: int, seed: int, seconds: float = math.inf) -> Iterator[dict]:
    """A row of so many edits that lie off, and one of as many pairs of unrelated pictures."""
    from qwen_worker.pictures.registration import Place, register

    from .measure.altered_photos import altered

    rng = np.random.default_rng(seed)
    off, errors, sure, unrelated = list[float](), list[float](), 0, list[float]()
    for number in within(count, seconds):
        size = SIZES[number % len(SIZES)]
        case = altered(rng, *size)
        truth, found = Place(*case.shift, case.scale), register(case.source, case.edit)
        off.append(truth.distance(Place(), size))
        errors.append(found.place.distance(truth, size) if found.is_sure else off[-1])
        sure += found.is_sure
        other = altered(rng, *size, related=False)
        unrelated.append(register(other.source, other.edit))
    if count := len(errors):
        facts = {"within half a pixel": share(errors), "moved": sure, "median before": round(float(np.median(off)), 2)}
        yield {"what": "alignment", "cases": count} | spread(errors) | facts
        confidence = max(found.confidence for found in unrelated)
        moved = sum(found.is_sure for found in unrelated)
        yield {"what": "unrelated pictures", "cases": count, "moved": moved, "confidence at most": round(confidence, 3)}


def colours(count: int, seed: int, seconds: float = math.inf) -> Iterator[dict]:
    """A row for what is unchanged and one for what is edited, of so many edits with a drift."""
    from qwen_worker.pictures.matching import Matching

    from .measure.altered_photos import altered, drifted

    rng = np.random.default_rng(seed)
    before, after = {True: list[float](), False: list[float]()}, {True: list[float](), False: list[float]()}
    for number in within(count, seconds):
        case = altered(rng, *SIZES[number % len(SIZES)], off=0.0)
        edit = drifted(rng, case.edit)
        kept = Matching(align=False, keep_colours=True).match(case.source, edit)
        for is_kept in (True, False):
            where = case.kept == is_kept
            for picture, levels in ((edit, before), (kept, after)):
                levels[is_kept].append(mean_difference(picture, case.edit, where))
    for is_kept, name in ((True, "colours, unchanged part"), (False, "colours, edited part")):
        if count := len(after[is_kept]):
            facts = {"median before": round(float(np.median(before[is_kept])), 2)}
            yield {"what": name, "cases": count} | spread(after[is_kept]) | facts


def mean_difference(one: Image.Image, other: Image.Image, where: np.ndarray) -> float:
    """Levels between the means of a channel, at most."""
    first, second = (np.asarray(picture, dtype=np.float64)[where].mean(0) for picture in (one, other))
    return float(np.abs(first - second).max())


def spread(errors: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(errors)), 3), "95 %": round(float(np.quantile(errors, 0.95)), 3),
            "worst": round(max(errors), 3)}  # fmt: skip


def share(errors: list[float]) -> float:
    """Per cent of the cases that are within half a pixel."""
    return round(100 * sum(error <= HALF for error in errors) / len(errors), 1)
