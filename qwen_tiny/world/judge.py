"""Reads a picture of the tiny world from its pixels: colours, shape, size, position, and how a subject was kept.

numpy and PIL only: no model, no network, and nothing shared with the code that draws but the names and the palette.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .scenes import RGB
from .wordings import COLOURS

WORK_SIDE = 256  # pixels of the shorter side at which shapes are measured
LEAST_AREA = 0.004  # share of the picture: a smaller piece is no subject
CLOSE_COLOUR = 60.0  # RGB distance within which a pixel counts as a palette colour
LEAST_OVERLAP = 0.86  # intersection over union with the best shape: circle and square have 0.83 with each other
LEAST_LEAD = 0.02  # of the best shape's overlap over the second's
SMALL_BELOW = 0.095  # share of the squared shorter side: between a small and a large subject's area


@dataclass(frozen=True)
class Reading:
    """What the picture shows. Without a subject all but the background are None."""

    background: str | None
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None


def read(image: Image.Image) -> Reading:
    """What the picture's pixels show, whatever its size and mode."""
    pixels = _pixels(image)
    background = _background(pixels)
    subject = _subject(pixels, background)
    name = _colour(background)
    if subject.mean() < LEAST_AREA:
        return Reading(name)
    inner = _erode(subject)
    colour = _colour(np.median(pixels[inner if inner.any() else subject], axis=0))
    rows, columns = np.nonzero(subject)
    height, width = subject.shape
    middle = (columns.min() + columns.max() + 1) / 2 / width
    position = "left" if middle < 0.375 else "right" if middle > 0.625 else "center"
    size = "small" if subject.sum() / min(width, height) ** 2 < SMALL_BELOW else "large"
    return Reading(name, colour, _shape(subject), size, position)


def subject_mask(image: Image.Image) -> np.ndarray:
    """Where the subject is: (h, w) bool at the working size."""
    pixels = _pixels(image)
    return _subject(pixels, _background(pixels))


def overlap(before: Image.Image, after: Image.Image) -> float:
    """Intersection over union of the two subjects; 1 when neither picture has one."""
    subject_before = subject_mask(before)
    subject_after = subject_mask(after.resize(before.size, Image.Resampling.BOX))
    union = (subject_before | subject_after).sum()
    return float((subject_before & subject_after).sum() / union) if union else 1.0


def read_layers(layers: Sequence[Image.Image]) -> tuple[Reading, Reading]:
    """What the bottom layer shows by itself, and what the one above it shows on the palette's colour furthest from it.

    RGBA pictures. A bottom layer is right without a subject, and the other with all around it clear: its reading then
    has that colour as its background.
    """
    bottom, subject = (layer.convert("RGBA") for layer in layers[:2])
    pixels = np.asarray(subject, np.float32)
    opaque = pixels[pixels[..., 3] > 127]
    colour = np.median(opaque[:, :3], axis=0) if len(opaque) else np.zeros(3)
    contrast = max(RGB.values(), key=lambda rgb: float(np.linalg.norm(np.array(rgb) - colour)))
    return read(Image.alpha_composite(Image.new("RGBA", bottom.size, "white"), bottom)), read(
        Image.alpha_composite(Image.new("RGBA", subject.size, contrast), subject)
    )


def matches(reading: Reading, asked: dict[str, str | None]) -> dict[str, bool]:
    """{attribute: right?} for every attribute that `asked` fixes; one whose word is None is open."""
    return {name: getattr(reading, name) == word for name, word in asked.items() if word is not None}


def _pixels(image: Image.Image) -> np.ndarray:
    """(h, w, 3) float32, 0 to 255, at the working size."""
    scale = WORK_SIDE / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def _background(pixels: np.ndarray) -> np.ndarray:
    """The median colour of a frame along the border."""
    edge = WORK_SIDE // 32
    frame = [pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]]
    return np.median(np.concatenate([part.reshape(-1, 3) for part in frame]), axis=0)


def _subject(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Pixels nearer to the subject's colour than to the background's, in the largest connected piece: (h, w) bool."""
    away = np.linalg.norm(pixels - background, axis=-1)
    different = away > CLOSE_COLOUR
    if different.mean() < LEAST_AREA:
        return np.zeros(different.shape, bool)
    subject = np.median(pixels[away > 0.7 * np.percentile(away[different], 90)], axis=0)
    halfway = away > np.linalg.norm(pixels - subject, axis=-1)
    return _largest_piece(halfway & (away > CLOSE_COLOUR / 2))


def _colour(rgb: np.ndarray) -> str | None:
    """The palette's nearest colour, or None when none is close."""
    distances = {name: float(np.linalg.norm(np.array(RGB[name]) - rgb)) for name in COLOURS}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < CLOSE_COLOUR else None


def _shape(subject: np.ndarray) -> str | None:
    """The shape that, drawn around the same middle with the same area, covers the subject best; None if none does."""
    down, across = (axis - axis[subject].mean() for axis in np.indices(subject.shape, np.float32))
    shapes = _shape_masks(across, down, subject.sum())
    overlaps = {name: (subject & shape).sum() / (subject | shape).sum() for name, shape in shapes.items()}
    best, second = sorted(overlaps, key=overlaps.__getitem__, reverse=True)[:2]
    clear = overlaps[best] >= LEAST_OVERLAP and overlaps[best] - overlaps[second] >= LEAST_LEAD
    return best if clear else None


def _shape_masks(across: np.ndarray, down: np.ndarray, area: int) -> dict[str, np.ndarray]:
    """Each shape as a mask of `area` pixels around the middle from which `across` and `down` are counted."""
    height = (area * 3**0.5) ** 0.5  # of the equilateral triangle, two thirds of it above the middle
    return {
        "circle": across**2 + down**2 <= area / np.pi,
        "square": np.maximum(abs(across), abs(down)) <= area**0.5 / 2,
        "diamond": abs(across) + abs(down) <= (area / 2) ** 0.5,
        "triangle": (down <= height / 3) & (abs(across) * 3**0.5 <= down + height * 2 / 3),
    }


def _erode(subject: np.ndarray, by: int = 2) -> np.ndarray:
    """The subject without its rim, where antialiasing mixes the colours."""
    inner = subject.copy()
    for axis in (0, 1):
        for step in (-by, by):
            inner &= np.roll(subject, step, axis)
    return inner


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected piece: labels spread along rows and columns until none changes."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    labels = np.where(mask[box], np.arange(1, mask[box].size + 1).reshape(mask[box].shape), 0)
    before = np.zeros_like(labels)
    while not np.array_equal(before, labels):
        before = labels
        labels = _spread(_spread(labels, axis=0), axis=1)
    names, counts = np.unique(labels[labels > 0], return_counts=True)
    piece = np.zeros_like(mask)
    piece[box] = labels == names[counts.argmax()]
    return piece


def _spread(labels: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis, each run of pixels that have a label takes the run's largest label."""
    for _ in ("forwards", "backwards"):
        run_base = (labels == 0).cumsum(axis) * (labels.max() + 1)  # a later run's labels are above all earlier ones
        labels = np.where(labels > 0, np.maximum.accumulate(labels + run_base, axis) - run_base, 0)
        labels = np.flip(labels, axis)
    return labels
