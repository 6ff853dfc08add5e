"""Bytes to PIL images and back: base64 and data URIs in, upright 8-bit RGB of every mode, PNG, WebP or JPEG out.

Knows nothing of the network (`fetch.py`), of torch or of the models.
"""

import base64
import binascii
import io
import re
import struct
import warnings
import zlib
from typing import cast

from PIL import Image

from ..errors import InvalidInput, JobError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 20_000_000  # one encoded input image; the platform's largest request body
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB
# A longer picture would reach the limits of the edit pipelines: their processor raises at 200:1, and their arithmetic
# comes to a side of 0.
MAX_ASPECT = 8
JPEG_QUALITY = 92

# Some small files take minutes to decode: a progressive JPEG repeats its scans over the whole picture, a JPEG or PNG
# may consist of millions of empty pieces, a TIFF's tile may be larger than the picture. Cameras stay far below these
# bounds.
MAX_SCANS, MAX_PIECES = 100, 20_000
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


def unreadable_error(label: str, reason: str) -> JobError:
    return JobError("image_unreadable", f"{label} {reason}")


def decode_base64(text: str, label: str) -> bytes:
    """The bytes of base64 (either alphabet, with or without line breaks and padding) or of a base64 data URI.

    Raises `JobError` image_unreadable or invalid_input; `label` is the picture's name in them.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise unreadable_error(label, "is a data URI without ';base64,'")
    packed = re.sub(r"\s+", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise unreadable_error(label, "is neither base64, a base64 data URI nor an http(s) URL") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{label} must be at most {MAX_BYTES / 1e6:.0f} MB, not {len(data) / 1e6:.1f} MB")
    return data


def decode_picture(data: bytes, label: str, background: str = "white") -> Image.Image:
    """An upright RGB picture of at most `MAX_PIXELS`, its alpha flattened on the background.

    Raises `JobError` image_unreadable, or invalid_input for the picture's shape.
    """
    if not data:
        raise unreadable_error(label, "is empty")
    require_few_pieces(data, label)
    with warnings.catch_warnings():
        # Pillow warns of large sizes, which `require_shape` refuses, and of damaged EXIF, which spoils no pixel.
        warnings.simplefilter("ignore")
        picture = open_picture(data, label)
        require_shape(*picture.size, label)
        try:
            require_small_tiles(picture, label)
            return to_rgb(turn_upright(picture), background)
        except DECODE_ERRORS:
            raise unreadable_error(label, f"is a damaged {picture.format} file") from None


def require_few_pieces(data: bytes, label: str) -> None:
    """Refuse a JPEG or PNG of so many pieces that decoding would take minutes."""
    if data[:2] == b"\xff\xd8":
        scans = data.count(b"\xff\xda")
        pieces = sum(data.count(b"\xff" + bytes([kind])) for kind in (0xFE, *range(0xE0, 0xF0)))
    elif data[:4] == b"\x89PNG":
        scans, pieces = 0, data.count(b"IDAT")
    else:
        return
    if scans > MAX_SCANS or pieces > MAX_PIECES:
        raise unreadable_error(label, f"has {max(scans, pieces):,} parts, far more than pictures have")


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
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels") from None
    except DECODE_ERRORS:
        raise unreadable_error(label, f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None


def require_shape(width: int, height: int, label: str) -> None:
    """Refuse more than `MAX_PIXELS`, and a side of more than `MAX_ASPECT` times the other."""
    if width * height > MAX_PIXELS:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels, not {width}x{height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInput(f"{label} must have an aspect of at most {MAX_ASPECT}:1, not {width}x{height}")


def to_rgb(picture: Image.Image, background: str = "white") -> Image.Image:
    """8-bit RGB of the first frame; alpha is flattened on the background, deep greyscale is scaled to 8 bits."""
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    elif picture.mode in ("I", "F"):
        picture = scale_to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    return picture.convert("RGB")


def scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """32-bit greyscale as 8-bit, white at the ceiling of its values: 1, 255, 65535, or the largest of them.

    Pillow opens scientific TIFFs as 32-bit, and in some versions 16-bit PNGs.
    """
    low, high = cast("tuple[float, float]", picture.getextrema())  # one pair, since the picture has one band
    if low >= 0 and high <= 1 and picture.mode == "F":
        ceiling = 1
    else:
        ceiling = 255 if high <= 255 else 65535 if high <= 65535 else high
    return picture.point(lambda value: value * (255 / ceiling)).convert("L")


def encode_picture(picture: Image.Image, output_format: str, quality: int | None = None) -> bytes:
    """The bytes of a `png`, a `webp` (lossless unless a quality of 1 to 100 is given) or a `jpeg` file."""
    options = {
        "png": {"compress_level": 1},  # `optimize` would cost twice the time for 15 % fewer bytes
        "webp": {"quality": quality} if quality else {"lossless": True, "method": 0, "quality": 0},
        "jpeg": {"quality": quality or JPEG_QUALITY},
    }[output_format]
    buffer = io.BytesIO()
    picture.save(buffer, format=output_format.upper(), **options)
    return buffer.getvalue()
