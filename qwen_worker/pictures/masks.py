"""Masks: white where a picture is repainted. Decoded, and what lies outside brought back to the byte.

Knows nothing of torch or of the models.
"""

from PIL import Image

from ..errors import InvalidInput
from .images import decode

FEATHER = 8  # pixels


def decode_mask(data: bytes, label: str, size: tuple[int, int]) -> Image.Image:
    """The mask as `L` of 0 and 255 (repaint) and exactly the source picture's size; what is transparent is black."""
    mask = decode(data, label, background="black").convert("L").point(lambda value: 255 if value >= 128 else 0)
    if mask.size != size:
        raise InvalidInput(
            f"{label} must have the size of the image, {size[0]}x{size[1]}, not {mask.width}x{mask.height}"
        )
    if not mask.getbbox():
        raise InvalidInput(f"{label} must be white where the picture is repainted, and has no white pixel")
    return mask


def restore_outside(picture: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture inside the mask, the source's own pixels outside, faded over `FEATHER` pixels inside its edge."""
    source = source.resize(picture.size, Image.Resampling.LANCZOS) if source.size != picture.size else source
    mask = mask.resize(picture.size, Image.Resampling.NEAREST) if mask.size != picture.size else mask
    return Image.composite(picture, source, feathered(mask))


def feathered(mask: Image.Image) -> Image.Image:
    """The mask with an edge that rises over `FEATHER` pixels, or over half the width where it is thinner than that.

    Zero wherever the mask is, full in the middle of every part of it: the distance to the edge (chessboard, counted up
    to `FEATHER`) over the largest such distance nearby.
    """
    import numpy as np

    inside = np.asarray(mask) > 127
    distance = np.zeros(inside.shape, dtype=np.uint8)
    for _ in range(FEATHER):
        distance += inside
        inside = spread(inside, np.minimum)
    thickness = distance
    for _ in range(FEATHER):
        thickness = spread(thickness, np.maximum)
    return Image.fromarray((distance * 255.0 / np.maximum(thickness, 1)).astype(np.uint8), "L")


def spread(values, extreme):
    """The extreme of each value and its eight neighbours; beyond the border lies what lies on it."""
    import numpy as np

    for axis in (0, 1):
        padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
        count = values.shape[axis]
        parts = (padded.take(range(k, k + count), axis) for k in range(3))
        values = extreme(extreme(next(parts), next(parts)), next(parts))
    return values
