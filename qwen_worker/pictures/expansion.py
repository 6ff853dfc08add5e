"""Outpainting: a picture on a larger canvas, what continues it there, and the mask of what is to be drawn.

An edit model looks at the whole canvas, and a start from it has its colours: the new part is filled with what lies next
to it, at the seam pixel by pixel and farther away ever softer, so that no edge and no streak asks to be kept. Knows
nothing of torch or of the models.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from ..jobs.expansion import Margins
from .photo import Photo, to_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FADE = 64  # pixels from the seam over which the picture's last pixels fade into the soft fill
SOFT_SIDE = 256  # pixels of the longer side at which the soft fill is made
SOFT_RADIUS = 12  # of its blur, in the pixels of that size


def expanded(picture: Image.Image, margins: Margins) -> Image.Image:
    """The picture, of 8-bit channels, on the grown canvas; its own pixels are kept, and so is its `info`."""
    import numpy as np

    space = ((margins.top, margins.bottom), (margins.left, margins.right))
    # No more than three copies of a photo at once: what is not needed any more has no name.
    channels = ((0, 0),) * (len(picture.getbands()) > 1)
    grown = Image.fromarray(np.pad(np.asarray(picture), (*space, *channels), mode="edge"))
    shrink = min(1.0, SOFT_SIDE / max(grown.size))
    small = grown.resize((max(1, round(grown.width * shrink)), max(1, round(grown.height * shrink))))
    soft = small.filter(ImageFilter.GaussianBlur(SOFT_RADIUS)).resize(grown.size, Image.Resampling.BILINEAR)
    across, down = (fade(side, ends) for side, ends in ((picture.width, space[1]), (picture.height, space[0])))
    grown.paste(soft, (0, 0), Image.fromarray(np.maximum(across[None, :], down[:, None])))
    grown.info = dict(picture.info)
    return grown


def fade(side: int, ends: tuple[int, int]) -> "NDArray[np.uint8]":
    """How much of the soft fill is in each pixel along a grown side, 0 to 255. `ends`: its new pixels at either end."""
    import numpy as np

    distances = np.pad(np.zeros(side), ends, mode="linear_ramp", end_values=ends)  # to the picture's nearest pixel
    return np.minimum(distances * (255 / FADE), 255).astype(np.uint8)


def expanded_photo(photo: Photo, margins: Margins) -> Photo:
    """The photo on the grown canvas. Of 16 bits it keeps its own, and what is new has 8, which are drawn over."""
    import numpy as np

    if photo.picture:
        return replace(photo, picture=expanded(photo.picture, margins))
    assert photo.deep is not None
    around = np.asarray(expanded(to_picture(photo.deep), margins))
    deep = (around[:, :, None] if around.ndim == 2 else around).astype(np.uint16)
    deep *= 257  # in place: two arrays of 16 bits are held then, and not three
    height, width = photo.deep.shape[:2]
    deep[margins.top : margins.top + height, margins.left : margins.left + width] = photo.deep
    return replace(photo, deep=deep)


def expanded_mask(mask: Image.Image | None, size: tuple[int, int], margins: Margins) -> Image.Image:
    """What is repainted on the grown canvas of a picture of this size: all that is new, and within it the mask."""
    width, height = margins.grown(size)
    grown = Image.new("L", (width, height), 255)
    grown.paste(mask or 0, (margins.left, margins.top, margins.left + size[0], margins.top + size[1]))
    return grown
