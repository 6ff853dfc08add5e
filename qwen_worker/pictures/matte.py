"""The subject of a picture, by a mask of it: how much of each pixel belongs to it, and what is drawn around it.

A mask of a subject is a matte: its greys are pixels that show the subject and the background through each other, hair
and edges. Knows nothing of torch or of the models.
"""

from PIL import Image, ImageChops, ImageFilter

from ..errors import InvalidInput
from ..jobs.values import Warn
from .images import MAX_ASPECT, as_rgb, flatten, load_picture
from .masks import fits

SOFT_EDGE = 1.0  # pixels: the blur of the edge of a mask without greys; beyond three of them nothing is left of it
FAINT = 8  # a grey that is nearer to black or white than this is that: JPEG leaves neither as it is
WITHOUT_FAINT = [0] * FAINT + list(range(FAINT, 256 - FAINT)) + [255] * FAINT  # by grey value


def around_subject(
    data: bytes, label: str, size: tuple[int, int], warn: Warn, max_aspect: float = MAX_ASPECT
) -> Image.Image:
    """The mask of what is drawn around the subject: `L` of the picture's size, 0 where the subject's pixels are kept.

    The subject is what is white in the file, or what is opaque where the file has transparent pixels. Its edge fades
    into the background, on the background's side. Raises `JobError` image_unreadable or invalid_input.
    """
    picture = load_picture(data, label, warn, max_aspect)
    if picture.mode in ("LA", "RGBA") and picture.getchannel("A").getextrema()[0] != 255:
        matte, subject, background = picture.getchannel("A"), "opaque", "transparent"
    else:
        matte, subject, background = as_rgb(flatten(picture)).convert("L"), "white", "black"
    if not fits(matte.size, size):
        sizes = f"{size[0]}x{size[1]}, or its aspect, not {matte.width}x{matte.height}"
        raise InvalidInput(f"{label} must have the size of the image, {sizes}")
    matte = matte if matte.size == size else matte.resize(size, Image.Resampling.BILINEAR)
    matte = matte.point(WITHOUT_FAINT)
    counts = matte.histogram()
    for level, where, word in ((255, "the subject", subject), (0, "the background", background)):
        if not counts[level]:
            raise InvalidInput(f"{label} must be {word} where {where} is, and has no {word} pixel")
    if counts[0] + counts[255] == size[0] * size[1]:
        matte = ImageChops.lighter(matte, matte.filter(ImageFilter.GaussianBlur(SOFT_EDGE)))
    return ImageChops.invert(matte)
