"""Files that a visitor has chosen or painted, checked before they are sent. Knows nothing of jobs.

The worker checks them too. Here they are checked so that a wrong file is refused at once, and by its own name.
"""

import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Unreadable
from .form import Picture

if TYPE_CHECKING:
    from PIL import Image

UPLOAD_MB = 20  # of one file: what the worker takes
SUFFIXES = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif",
    "AVIF": ".avif",
}  # fmt: skip
FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF"
EDITOR_SIDE = 1024  # pixels: the longer side of the picture that is painted on
BRUSH = (255, 45, 146)  # of the strokes: a colour that few pictures have
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
PAINTED = 64  # of 255: how opaque a stroke must be to count; less is the soft rim of the brush


def open_picture(file: Path, name: str) -> Picture:
    """Raises `Unreadable`, with the name that the visitor knows the file by, for what is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # of a large picture, which is the worker's to accept or refuse
            suffix = SUFFIXES.get(image.format or "")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        suffix = None
    if suffix is None:
        raise Unreadable(f"{name} is not a picture that can be used. Choose one of {FORMATS}.", name)
    return Picture(file, suffix)


def ground_of_mask(picture: Picture, folder: Path) -> Path:
    """A copy to paint on: upright, as the worker turns it, and small enough for a phone."""
    from PIL import Image, ImageOps

    with Image.open(picture.file) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((EDITOR_SIDE, EDITOR_SIDE))
    file = folder / f"ground-{uuid.uuid4().hex}.png"
    upright.save(file)
    return file


def mask_of(layers: Sequence["Image.Image"], picture: Picture, folder: Path) -> Picture | None:
    """White where any layer is painted on, in the size of the upright picture; None where nothing is painted."""
    from PIL import Image, ImageChops

    if not layers:
        return None
    with Image.open(picture.file) as image:
        turned = image.getexif().get(ORIENTATION, 1) in TURNED
        size = (image.height, image.width) if turned else image.size
    painted = Image.new("L", layers[0].size)
    for layer in layers:
        painted = ImageChops.lighter(painted, layer.convert("RGBA").getchannel("A"))
    mask = painted.point([0] * PAINTED + [255] * (256 - PAINTED))
    if mask.getbbox() is None:
        return None
    file = folder / f"mask-{uuid.uuid4().hex}.png"
    mask.resize(size, Image.Resampling.NEAREST).save(file)
    return Picture(file)


def strokes_of(mask: Picture, ground: Path, folder: Path) -> Path:
    """The mask as a layer to paint on further, in the size of its ground."""
    from PIL import Image

    with Image.open(ground) as image, Image.open(mask.file) as white:
        alpha = white.convert("L").resize(image.size, Image.Resampling.NEAREST)
    layer = Image.new("RGBA", alpha.size, (*BRUSH, 255))
    layer.putalpha(alpha)
    file = folder / f"strokes-{uuid.uuid4().hex}.png"
    layer.save(file)
    return file
