"""Bytes to PIL images and back: upright pictures of 8 bits in, PNG, WebP or JPEG out.

Knows nothing of how bytes are sent (`data_uris.py`, `fetch.py`), of torch or of the models.
"""

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import InvalidInput
from ..jobs.values import Warn
from .boxes import is_container, require_decodable
from .colour import COLOUR_INFO
from .jpeg_files import END as JPEG_END
from .jpeg_files import START as JPEG_START
from .jpeg_files import read_scans, reduce_large, require_nearly_whole
from .structure import PNG_START, format_of, png_colours, require_few_pieces, unreadable_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS, CONTAINERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"), ("AVIF", "HEIF")  # as Pillow calls them
FORMAT_NAMES = "PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF or HEIC"
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB
MAX_CODED_PIXELS = 2 * MAX_PIXELS  # of a HEIC or AVIF file, with alpha and the tiles that the picture is cut from
# A longer picture would reach the limits of the edit pipelines: their processor raises at 200:1, and their arithmetic
# comes to a side of 0.
MAX_ASPECT = 8
OVERSHOOT = 2.0  # up to which a picture of floats from 0 to 1 may run over where a filter sharpened it
# The whites that pictures of larger floats may have. The right one is at most so many times what most of their pixels
# stay below: a white that is further away would leave the picture black.
WHITES, BULK, DARKEST = (1.0, 255.0, 65535.0), 99.0, 16  # `BULK`: percent of the pixels
SAMPLE = 1_000_000  # pixels that stand for all of a large picture

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT_TURNS = {  # by the tag's value; 1, which is missing here, says that the picture is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# The exceptions that Pillow's decoders raise on bytes that do not match their header.
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


def load_picture(data: bytes, label: str, warn: Warn) -> Image.Image:
    """An upright picture of at most `MAX_PIXELS` in the file's own numbers, of mode L, LA, RGB, RGBA or CMYK.

    Its `info` has what the file says of its colours. `warn` gets what is missing of it. Raises `JobError`
    image_unreadable, or invalid_input for the picture's shape.
    """
    if not data:
        raise unreadable_error(label, "is empty")
    require_few_pieces(data, label)
    data, colours = png_colours(data, label, warn) if data.startswith(PNG_START) else (data, {})
    if is_container(data):
        data, numbers = require_decodable(data, label, MAX_CODED_PIXELS)
        colours = {"cicp": numbers} if numbers else {}
    scans = read_scans(data) if data.startswith(JPEG_START) else None
    if scans and scans.is_cut_off:
        # An interrupted download may have left zeros, which a decoder would take for flat blocks of the picture.
        data = data.rstrip(b"\0") + JPEG_END
    with warnings.catch_warnings():
        # Pillow warns of large sizes, which `require_shape` refuses, and of damaged EXIF, which spoils no pixel.
        warnings.simplefilter("ignore")
        picture = open_picture(data, label)
        if scans and isinstance(picture, JpegImageFile):
            reduce_large(picture, scans, label, MAX_PIXELS)
        require_shape(*picture.size, label)
        try:
            require_small_tiles(picture, label)
            if scans and scans.is_cut_off:
                require_nearly_whole(data, scans, label, warn)
            picture.load()  # turns a TIFF upright by itself, and then no longer has the tag that says so
            upright = turn_upright(picture)
            plain = to_plain_mode(scale_floats(upright, label, warn) if upright.mode == "F" else upright)
        except DECODE_ERRORS:
            raise unreadable_error(label, f"is a damaged {picture.format} file") from None
        plain.info = {**{name: picture.info[name] for name in COLOUR_INFO if name in picture.info}, **colours}
        return plain


def require_small_tiles(picture: Image.Image, label: str) -> None:
    """Refuse a TIFF whose tiles would take more memory than the largest picture."""
    tags = getattr(picture, "tag_v2", {})
    if tags.get(322, 1) * tags.get(323, 1) > MAX_PIXELS:  # TileWidth, TileLength
        raise unreadable_error(label, "is a TIFF whose tiles are larger than any picture")


def turn_upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; as it is where the EXIF is damaged."""
    try:
        turn = UPRIGHT_TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except DECODE_ERRORS:
        turn = None
    return picture.transpose(turn) if turn is not None else picture


def open_picture(data: bytes, label: str) -> Image.Image:
    """The picture as its header describes it; its pixels are not decoded yet."""
    if is_container(data):
        import pi_heif  # pyright: ignore[reportMissingTypeStubs]

        # Adds to Pillow's formats. What else a file holds beside its picture is not looked for.
        options = {"thumbnails": False, "depth_images": False, "aux_images": False}
        pi_heif.register_heif_opener(**options)  # pyright: ignore[reportUnknownMemberType]  not annotated
    try:
        return Image.open(io.BytesIO(data), formats=CONTAINERS if is_container(data) else FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels") from None
    except DECODE_ERRORS:
        name = "HEIC or AVIF" if is_container(data) else format_of(data)
        what = f"a damaged {name} file" if name else f"not a {FORMAT_NAMES} picture"
        raise unreadable_error(label, f"is {what}") from None


def require_shape(width: int, height: int, label: str) -> None:
    """Refuse more than `MAX_PIXELS`, and a side of more than `MAX_ASPECT` times the other."""
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"{label} must have at most {MAX_PIXELS:,} pixels, not {width}x{height}; a JPEG may have more"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInput(f"{label} must have an aspect of at most {MAX_ASPECT}:1, not {width}x{height}")


def to_rgb(picture: Image.Image, background: str = "white") -> Image.Image:
    """8-bit RGB of the first frame; alpha is flattened on the background, deep greyscale is scaled to 8 bits."""
    return as_rgb(flatten(to_plain_mode(picture), background))


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB of the picture's numbers, without `info`: the picture itself where it is that already."""
    if picture.mode == "RGB" and not picture.info:
        return picture
    plain = picture.convert("RGB")  # a copy, also of RGB: the picture keeps its `info`
    plain.info = {}
    return plain


def to_plain_mode(picture: Image.Image) -> Image.Image:
    """8 bits of grey, RGB or CMYK, the first two perhaps with alpha: mode L, LA, RGB, RGBA or CMYK."""
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    elif picture.mode == "I":
        picture = scale_numbers(picture)
    is_grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        return picture.convert("LA" if is_grey else "RGBA")
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("L" if is_grey else "RGB")


def flatten(picture: Image.Image, background: str = "white") -> Image.Image:
    """A picture of a plain mode without its alpha, which shows a background of grey: mode L, RGB or CMYK."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, background), layer)
    return flat.getchannel("R") if picture.mode == "LA" else flat.convert("RGB")


def scale_numbers(picture: Image.Image) -> Image.Image:
    """32-bit whole numbers as 8-bit grey, white at the ceiling of their values: 255, 65535, or the largest.

    Pillow opens scientific TIFFs so, and in some versions 16-bit PNGs. What is below 0 is black.
    """
    import numpy as np

    values = np.array(picture, dtype=np.float32)
    high = float(values.max())
    return with_white(values, next((limit for limit in WHITES[1:] if high <= limit), high))


def scale_floats(picture: Image.Image, label: str, warn: Warn) -> Image.Image:
    """Floats as 8-bit grey, white at 1. `warn` is told of another white, which larger values are read with.

    What is no number, or below 0, is black.
    """
    import numpy as np

    values = np.array(picture, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=np.inf, neginf=0.0)
    high = float(np.max(values, where=np.isfinite(values), initial=0))
    if high <= OVERSHOOT:
        return with_white(values, 1.0)
    sample = np.minimum(values.ravel()[:: 1 + values.size // SAMPLE], high)  # infinite ones count as the largest
    white = likely_white(float(np.percentile(sample, BULK)), high)
    warn(f"{label} is a picture of floats up to {high:.6g}, of which {white:.6g} was taken for white")
    return with_white(values, white)


def likely_white(bulk: float, high: float) -> float:
    """The white of floats up to `high`, of which nearly all are up to `bulk`: a lamp or the sun may be far above."""
    reached = bulk or high  # a picture of few bright points
    white = next((limit for limit in WHITES if reached <= limit), high)
    return white if white == WHITES[0] or reached * DARKEST >= white else min(high, 2 * reached)


def with_white(values: "NDArray[np.float32]", white: float) -> Image.Image:
    """8-bit grey of the numbers, which are altered."""
    import numpy as np

    np.clip(values, 0, white, out=values)
    values *= 255 / white
    return Image.fromarray(values.astype(np.uint8), "L")
