"""Masks, white where a picture is repainted: decoded, and after the drawing the source's pixels restored outside.

Knows nothing of torch or of the models.
"""

from typing import TYPE_CHECKING, Literal

from PIL import Image, ImageChops

from ..errors import InvalidInput
from ..jobs.values import Warn
from .alpha import blend, to_opaque
from .colour import in_space_of
from .images import MAX_ASPECT, as_rgb, flatten, load_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEATHER = 8  # pixels
TOLERANCE = 0.02  # of a side or of the aspect, by which a mask may differ from its picture
DARK, LIGHT = 64, 192  # greys below and from which count as black and white where a mask's meaning is looked for
BLACK_AND_WHITE = 0.9  # share of the opaque pixels
# Of a soft mask, what is nearly black or white: JPEG leaves no black as it is.
FAINT_AS_NONE = [0] * 8 + list(range(8, 248)) + [255] * 8
AT_LEAST_HALF = [0] * 128 + [255] * 128  # by grey value, black or white


def decode_mask(
    data: bytes,
    label: str,
    size: tuple[int, int],
    warn: Warn,
    mask_from: Literal["alpha", "white"] | None = None,
    is_soft: bool = False,
    max_aspect: float = MAX_ASPECT,
) -> Image.Image:
    """The mask as `L` of 0 and 255 (repaint), of all levels with `is_soft`, fitted to the source picture's size.

    `mask_from`: whether its transparent or its white pixels are repainted; without it white ones are, and a mask is
    refused that only its transparency gives a meaning. Raises `JobError` image_unreadable or invalid_input.
    """
    picture = load_picture(data, label, warn, max_aspect)
    if mask_from is None:
        require_meaning(picture, label)
    if mask_from != "alpha":
        flat = flatten(picture, "black")
        mask = flat if flat.mode == "L" else as_rgb(flat).convert("L")
        rule = "must be white where the picture is repainted"
    elif picture.mode in ("LA", "RGBA"):
        mask, rule = ImageChops.invert(picture.getchannel("A")), "must be transparent where the picture is repainted"
    else:
        raise InvalidInput(f"{label} must be transparent where the picture is repainted, and has no transparent pixel")
    if not fits(mask.size, size):
        sizes = f"{size[0]}x{size[1]}, or its aspect, not {mask.width}x{mask.height}"
        raise InvalidInput(f"{label} must have the size of the image, {sizes}")
    mask = mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)
    mask = mask.point(FAINT_AS_NONE if is_soft else AT_LEAST_HALF)
    if not mask.getbbox():
        raise InvalidInput(f"{label} {rule}, and has no {'white' if mask_from != 'alpha' else 'transparent'} pixel")
    return mask


def require_meaning(picture: Image.Image, label: str) -> None:
    """Refuse a mask with transparent pixels whose opaque ones are not black and white. Raises `InvalidInput`.

    White around a transparent hole may be a mask of either kind: the hole is repainted, or all around it.
    """
    if picture.mode not in ("LA", "RGBA"):
        return
    opaque = picture.getchannel("A").point(AT_LEAST_HALF)
    if opaque.getextrema()[0]:
        return
    greys = picture.convert("L").histogram(opaque)
    black, white = sum(greys[:DARK]), sum(greys[LIGHT:])
    if not (black and white and black + white >= BLACK_AND_WHITE * sum(greys)):
        raise InvalidInput(
            f"{label} has transparent pixels, and its colours alone do not say what is repainted; send mask_from: "
            "'alpha' repaints where it is transparent, 'white' where it is white"
        )


def fits(mask: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a mask's size is that of the picture up to rounding, or has its aspect."""
    is_near = all(abs(ours - theirs) <= TOLERANCE * theirs for ours, theirs in zip(mask, size, strict=True))
    across, down = mask[0] * size[1], mask[1] * size[0]
    return is_near or abs(across - down) <= TOLERANCE * down


def restore_outside(picture: Image.Image, source: Image.Image, mask: Image.Image, is_soft: bool = False) -> Image.Image:
    """The picture inside the mask and the source's own pixels outside; they fade over `FEATHER` pixels inside its edge.

    With `is_soft` they fade as the mask's own greys do. Source and mask are brought to the picture's size, and the
    picture, which is sRGB, to the source's colour space. The result is RGBA where one of the two is.
    """
    source = source.resize(picture.size, Image.Resampling.LANCZOS) if source.size != picture.size else source
    if mask.size != picture.size:
        mask = mask.resize(picture.size, Image.Resampling.BILINEAR if is_soft else Image.Resampling.NEAREST)
    edge = mask if is_soft else feather(mask)
    if source.mode == "L":  # grey files have no transparency here
        picture = to_opaque(picture)
    if "RGBA" in (picture.mode, source.mode):
        return blend(picture, source, edge)
    return Image.composite(in_space_of(picture, source), source, edge)


def feather(mask: Image.Image, reach: int = FEATHER) -> Image.Image:
    """The mask with an edge that rises over `reach` pixels, or over half the width of a part that is thinner.

    It is 0 wherever the mask is, and 255 in the middle of each of its parts: each value is the pixel's distance to the
    edge (chessboard distance, counted up to `reach`) divided by the largest such distance nearby.
    """
    import numpy as np

    inside = np.asarray(mask) > 127
    distance = np.minimum(rows_to_edge(inside, reach), rows_to_edge(inside[::-1], reach)[::-1])
    down = distance  # what the edge is away along each column: the nearest one of all is in a column nearby
    for step in range(1, reach):
        along = np.maximum(down, np.uint8(step))
        distance = distance.copy() if distance is down else distance
        np.minimum(distance[:, step:], along[:, :-step], out=distance[:, step:])
        np.minimum(distance[:, :-step], along[:, step:], out=distance[:, :-step])
    thickness = widest(widest(distance, reach).T, reach).T
    return Image.fromarray((distance * 255.0 / np.maximum(thickness, 1)).astype(np.uint8), "L")


def rows_to_edge(inside: "NDArray[np.bool_]", reach: int) -> "NDArray[np.uint8]":
    """How many rows up the edge is from each pixel, 1 for the first row inside; `reach` at most, and at the border."""
    import numpy as np

    distance = np.empty(inside.shape, np.uint8)
    above = np.full(inside.shape[1], reach, np.uint8)
    for row, values in enumerate(inside):
        above = np.minimum(above + np.uint8(1), np.uint8(reach)) * values
        distance[row] = above
    return distance


def widest(values: "NDArray[np.uint8]", reach: int) -> "NDArray[np.uint8]":
    """Of each row's values, the largest among those up to `reach` rows away."""
    import numpy as np

    window, length = 2 * reach + 1, 1
    largest = np.pad(values, ((reach, reach), (0, 0)))
    while 2 * length <= window:  # of twice as many rows at each turn
        largest = np.maximum(largest[:-length], largest[length:])
        length *= 2
    return np.maximum(largest[: len(values)], largest[window - length :][: len(values)])
