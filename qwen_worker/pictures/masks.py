"""Masks, white where a picture is repainted: decoded, and after the drawing the source's pixels restored outside.

Knows nothing of torch or of the models.
"""

from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from ..errors import InvalidInput
from .colour import in_space_of
from .images import decode_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound="np.generic")
FEATHER = 8  # pixels
AT_LEAST_HALF = [0] * 128 + [255] * 128  # by grey value, black or white


def decode_mask(data: bytes, label: str, size: tuple[int, int]) -> Image.Image:
    """The mask as `L` of 0 and 255 (repaint); transparent pixels are black.

    `size`: of the source picture, which the mask must have. Raises `JobError` image_unreadable or invalid_input.
    """
    mask = decode_picture(data, label, background="black").convert("L").point(AT_LEAST_HALF)
    if mask.size != size:
        raise InvalidInput(
            f"{label} must have the size of the image, {size[0]}x{size[1]}, not {mask.width}x{mask.height}"
        )
    if not mask.getbbox():
        raise InvalidInput(f"{label} must be white where the picture is repainted, and has no white pixel")
    return mask


def restore_outside(picture: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture inside the mask and the source's own pixels outside; they fade over `FEATHER` pixels inside its edge.

    Source and mask are brought to the picture's size, and the picture, which is sRGB, to the source's colour space.
    """
    source = source.resize(picture.size, Image.Resampling.LANCZOS) if source.size != picture.size else source
    mask = mask.resize(picture.size, Image.Resampling.NEAREST) if mask.size != picture.size else mask
    return Image.composite(in_space_of(picture, source), source, feather(mask))


def feather(mask: Image.Image) -> Image.Image:
    """The mask with an edge that rises over `FEATHER` pixels, or over half the width of a part that is thinner.

    It is 0 wherever the mask is, and 255 in the middle of each of its parts: each value is the pixel's distance to the
    edge (chessboard distance, counted up to `FEATHER`) divided by the largest such distance nearby.
    """
    import numpy as np

    inside = np.asarray(mask) > 127
    distance: NDArray[np.uint8] = np.zeros(inside.shape, dtype=np.uint8)
    for _ in range(FEATHER):
        distance += inside
        inside = spread(inside, np.minimum)
    thickness = distance
    for _ in range(FEATHER):
        thickness = spread(thickness, np.maximum)
    return Image.fromarray((distance * 255.0 / np.maximum(thickness, 1)).astype(np.uint8), "L")


def spread(values: "NDArray[Scalar]", extreme: "np.ufunc") -> "NDArray[Scalar]":
    """The `np.minimum` or `np.maximum` of each value and its eight neighbours; the border is repeated beyond itself."""
    import numpy as np

    for axis in (0, 1):
        padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
        count = values.shape[axis]
        parts = (padded.take(range(k, k + count), axis) for k in range(3))
        values = extreme(extreme(next(parts), next(parts)), next(parts))
    return values
