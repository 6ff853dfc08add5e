"""Pictures with the detail of photos, and edits of them of which every change is known. Knows nothing of the worker.

A photo is noise of several sizes, with shapes on it and often a flat sky. An edit of it has other content in a
rectangle of a tenth to two fifths of the picture, lies off by a known shift and scale, and is blurred and noisy as a
VAE makes it.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

BORDER = 100  # pixels around a photo, of which a shifted or smaller edit shows some
MOST_OFF = 0.03  # of a side, and of the scale


class Altered(NamedTuple):
    """An input picture and its edit. `kept`: where the edit has the input's content, (rows, columns)."""

    source: Image.Image
    edit: Image.Image
    shift: tuple[float, float]
    scale: float
    kept: np.ndarray


def altered(rng: np.random.Generator, width: int, height: int, off: float = MOST_OFF, related: bool = True) -> Altered:
    """`off`: how far the edit may lie beside its input. `related`: whether it shows the same picture at all."""
    wide = photo(rng, width + 2 * BORDER, height + 2 * BORDER)
    source = wide[BORDER:-BORDER, BORDER:-BORDER]
    seen = wide if related else photo(rng, width + 2 * BORDER, height + 2 * BORDER)
    scale, shift = 1 + rng.uniform(-off, off), rng.uniform(-off, off, 2) * max(width, height)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    place = np.array([[1 / scale, 0, 0], [0, 1 / scale, 0]])
    place[:, 2] = middle - (middle + shift) / scale + BORDER
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    edit = cv2.warpAffine(seen, place, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    kept = changed_part(rng, edit)
    noisy = edit + rng.normal(size=edit.shape) * 3
    blurred = cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.3, 1.2)).clip(0, 255).astype(np.uint8)
    return Altered(Image.fromarray(source), Image.fromarray(blurred), (shift[0], shift[1]), scale, kept)


def changed_part(rng: np.random.Generator, edit: np.ndarray) -> np.ndarray:
    """Put other content into a rectangle of the edit; True where there is none."""
    height, width = edit.shape[:2]
    share = rng.uniform(0.1, 0.4) ** 0.5
    tall, wide = int(height * share), int(width * share)
    top, left = rng.integers(0, height - tall), rng.integers(0, width - wide)
    edit[top : top + tall, left : left + wide] = photo(rng, wide, tall)
    kept = np.ones((height, width), bool)
    kept[top : top + tall, left : left + wide] = False
    return kept


def drifted(rng: np.random.Generator, edit: Image.Image) -> Image.Image:
    """The edit with a gamma, a gain and an offset of each channel's own."""
    levels = np.asarray(edit, dtype=np.float64) / 255
    gamma, gain, offset = rng.uniform(0.92, 1.08, 3), rng.uniform(0.9, 1.1, 3), rng.uniform(-10, 10, 3)
    return Image.fromarray((255 * levels**gamma * gain + offset).clip(0, 255).round().astype(np.uint8))


def photo(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) of 0 to 255."""
    channels = [texture(rng, width, height) * 12 + rng.uniform(80, 160) for _ in range(3)]
    pixels = np.stack(channels, -1) + texture(rng, width, height)[..., None] * rng.uniform(5, 25)
    for _ in range(rng.integers(5, 25)):
        colour = tuple(float(level) for level in rng.uniform(0, 255, 3))
        x, y, side = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.03, 0.2) * min(width, height)
        if rng.random() < 0.5:
            cv2.circle(pixels, (int(x), int(y)), int(side), colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(pixels, (int(x), int(y)), (int(x + 2 * side), int(y + side)), colour, -1)
    pixels[: int(height * rng.uniform(0, 0.4))] = rng.uniform(100, 255, 3)
    return cv2.GaussianBlur(pixels, (0, 0), 1).clip(0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width) of noise with more of it the larger its grain, as photos have it; of deviation 1."""
    total = np.zeros((height, width), np.float32)
    for grain in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(height // grain + 2, width // grain + 2)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * grain**0.7
    return total / total.std()
