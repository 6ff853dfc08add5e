"""Bytes to PIL images and back: base64 and data URIs in, every mode to upright 8-bit RGB, PNG, WebP or JPEG out.

Knows nothing of the network (`fetch.py`), of torch or of the models.
"""

import base64
import binascii
import io
import re
import struct
import warnings
import zlib

from PIL import Image, ImageChops, ImageFilter, ImageOps

from .errors import InvalidInput, JobError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 20_000_000  # one encoded input image; the platform's largest request body
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB
# The edit processor raises at 200:1 and the pipeline's own arithmetic reaches a side of 0; no picture is that long.
MAX_ASPECT = 8
FEATHER = 8  # pixels
JPEG_QUALITY = 92

# What Pillow's decoders raise on bytes that are not what their header says.
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


def unreadable(label: str, why: str) -> JobError:
    return JobError("image_unreadable", f"{label} {why}")


def from_text(text: str, label: str) -> bytes:
    """The bytes of base64 (either alphabet, with or without line breaks and padding) or of a base64 data URI."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise unreadable(label, "is a data URI without ';base64,'")
    packed = re.sub(r"\s+", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise unreadable(label, "is neither base64, a base64 data URI nor an http(s) URL") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{label} must be at most {MAX_BYTES / 1e6:.0f} MB, not {len(data) / 1e6:.1f} MB")
    return data


def decode(data: bytes, label: str) -> Image.Image:
    """An upright RGB picture of at most `MAX_PIXELS`. Raises `image_unreadable`, or `invalid_input` for its shape."""
    if not data:
        raise unreadable(label, "is empty")
    with warnings.catch_warnings():
        # Pillow warns of a size that we check ourselves, and of damaged EXIF, without which the picture is still one.
        warnings.simplefilter("ignore")
        picture = opened(data, label)
        require_shape(*picture.size, label)
        try:
            return to_rgb(ImageOps.exif_transpose(picture))
        except DECODE_ERRORS:
            raise unreadable(label, f"is a damaged {picture.format} file") from None


def opened(data: bytes, label: str) -> Image.Image:
    """The picture by its header, its pixels not yet decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels") from None
    except DECODE_ERRORS:
        raise unreadable(label, f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None


def require_shape(width: int, height: int, label: str) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels, not {width}x{height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInput(f"{label} must have an aspect of at most {MAX_ASPECT}:1, not {width}x{height}")


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of the first frame; alpha is flattened on white, deep greyscale is scaled to 8 bits."""
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    elif picture.mode in ("I", "F"):
        picture = scaled_to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def scaled_to_8_bits(picture: Image.Image) -> Image.Image:
    """32-bit greyscale: 16-bit PNG opens so in some Pillow versions, scientific TIFF always. White is its ceiling."""
    low, high = picture.getextrema()
    if low >= 0 and high <= 1 and picture.mode == "F":
        ceiling = 1
    else:
        ceiling = 255 if high <= 255 else 65535 if high <= 65535 else high
    return picture.point(lambda value: value * (255 / ceiling)).convert("L")


def decode_mask(data: bytes, label: str, size: tuple[int, int]) -> Image.Image:
    """The mask as 1-bit-valued `L` (255 = repaint) of exactly the source picture's size."""
    mask = decode(data, label).convert("L").point(lambda value: 255 if value >= 128 else 0)
    if mask.size != size:
        raise InvalidInput(
            f"{label} must have the size of the image, {size[0]}x{size[1]}, not {mask.width}x{mask.height}"
        )
    if not mask.getbbox():
        raise InvalidInput(f"{label} must be white where the picture is repainted, and has no white pixel")
    return mask


def encode(picture: Image.Image, output_format: str, quality: int | None = None) -> str:
    """The picture as base64 of a `png`, `webp` (lossless unless a quality is given) or `jpeg`; PNG has no quality."""
    options = {
        "png": {"compress_level": 1},  # `optimize` costs twice the time for 15 % fewer bytes
        "webp": {"quality": quality} if quality else {"lossless": True, "method": 0, "quality": 0},
        "jpeg": {"quality": quality or JPEG_QUALITY},
    }[output_format]
    buffer = io.BytesIO()
    picture.save(buffer, format=output_format.upper(), **options)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def edit_size(source: tuple[int, int], mask: bool, multiple: int, low: int, high: int) -> tuple[int, int]:
    """The size of an edit that asks for none: the source's aspect at about a megapixel, as the edit pipelines do it.

    With a mask the source's own size where the checkpoint can draw it, since pixels outside the mask stay as they are.
    """
    width, height = source
    if mask and all(side % multiple == 0 and low <= side <= high for side in source):
        return source
    ratio = width / height
    area = 1024 * 1024
    return round((area * ratio) ** 0.5 / 32) * 32, round((area / ratio) ** 0.5 / 32) * 32


def restore_outside(picture: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture inside the mask, the source's own pixels outside, faded over `FEATHER` pixels inside its edge."""
    source = source.resize(picture.size, Image.Resampling.LANCZOS) if source.size != picture.size else source
    mask = mask.resize(picture.size, Image.Resampling.NEAREST) if mask.size != picture.size else mask
    # A box blur is half at the edge and reaches FEATHER inwards; below half is outside, where nothing may change.
    alpha = mask.filter(ImageFilter.BoxBlur(FEATHER)).point(lambda value: max(0, 2 * value - 255))
    return Image.composite(picture, source, ImageChops.multiply(alpha, mask))
