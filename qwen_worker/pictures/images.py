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

from PIL import Image

from ..errors import InvalidInput, JobError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 20_000_000  # one encoded input image; the platform's largest request body
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB
# The edit processor raises at 200:1 and the pipeline's own arithmetic reaches a side of 0; no picture is that long.
MAX_ASPECT = 8
EDIT_AREA = 1024 * 1024  # pixels; what the edit pipelines aim at
JPEG_QUALITY = 92

# Small files that take minutes to decode: a progressive JPEG repeats its scans over the whole picture, a JPEG or PNG
# may consist of millions of empty pieces, a TIFF's tile may be larger than the picture. Cameras stay far below.
MAX_SCANS, MAX_PIECES = 100, 20_000
ORIENTATION = 0x0112  # the EXIF tag, and what turns each of its values upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

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


def decode(data: bytes, label: str, background: str = "white") -> Image.Image:
    """An upright RGB picture of at most `MAX_PIXELS`, alpha flattened on the background.

    Raises `image_unreadable`, or `invalid_input` for its shape.
    """
    if not data:
        raise unreadable(label, "is empty")
    require_few_pieces(data, label)
    with warnings.catch_warnings():
        # Pillow warns of a size that we check ourselves, and of damaged EXIF, without which the picture is still one.
        warnings.simplefilter("ignore")
        picture = opened(data, label)
        require_shape(*picture.size, label)
        try:
            require_small_tiles(picture, label)
            return to_rgb(upright(picture), background)
        except DECODE_ERRORS:
            raise unreadable(label, f"is a damaged {picture.format} file") from None


def require_few_pieces(data: bytes, label: str) -> None:
    if data[:2] == b"\xff\xd8":
        scans, pieces = (
            data.count(b"\xff\xda"),
            sum(data.count(b"\xff" + bytes([kind])) for kind in (0xFE, *range(0xE0, 0xF0))),
        )
    elif data[:4] == b"\x89PNG":
        scans, pieces = 0, data.count(b"IDAT")
    else:
        return
    if scans > MAX_SCANS or pieces > MAX_PIECES:
        raise unreadable(label, f"has {max(scans, pieces):,} parts, far more than pictures have")


def require_small_tiles(picture: Image.Image, label: str) -> None:
    tags = getattr(picture, "tag_v2", {})
    if tags.get(322, 1) * tags.get(323, 1) > MAX_PIXELS:  # TileWidth, TileLength
        raise unreadable(label, "is a TIFF whose tiles are larger than any picture")


def upright(picture: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(picture.getexif().get(ORIENTATION))
    except DECODE_ERRORS:
        turn = None  # damaged EXIF says nothing of the pixels
    return picture.transpose(turn) if turn is not None else picture


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


def to_rgb(picture: Image.Image, background: str = "white") -> Image.Image:
    """8-bit RGB of the first frame; alpha is flattened on the background, deep greyscale is scaled to 8 bits."""
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    elif picture.mode in ("I", "F"):
        picture = scaled_to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    return picture.convert("RGB")


def scaled_to_8_bits(picture: Image.Image) -> Image.Image:
    """32-bit greyscale: 16-bit PNG opens so in some Pillow versions, scientific TIFF always. White is its ceiling."""
    low, high = picture.getextrema()
    if low >= 0 and high <= 1 and picture.mode == "F":
        ceiling = 1
    else:
        ceiling = 255 if high <= 255 else 65535 if high <= 65535 else high
    return picture.point(lambda value: value * (255 / ceiling)).convert("L")


def encode(picture: Image.Image, output_format: str, quality: int | None = None) -> str:
    """The picture's file as base64."""
    return base64.b64encode(encode_file(picture, output_format, quality)).decode("ascii")


def encode_file(picture: Image.Image, output_format: str, quality: int | None = None) -> bytes:
    """The bytes of a `png`, a `webp` (lossless unless a quality of 1 to 100 is given) or a `jpeg` file."""
    options = {
        "png": {"compress_level": 1},  # `optimize` costs twice the time for 15 % fewer bytes
        "webp": {"quality": quality} if quality else {"lossless": True, "method": 0, "quality": 0},
        "jpeg": {"quality": quality or JPEG_QUALITY},
    }[output_format]
    buffer = io.BytesIO()
    picture.save(buffer, format=output_format.upper(), **options)
    return buffer.getvalue()


def edit_size(source: tuple[int, int], mask: bool, multiple: int, low: int, high: int) -> tuple[int, int]:
    """The size of an edit that asks for none: the source's aspect at about a megapixel, as the edit pipelines do it.

    With a mask the source's own size where the checkpoint can draw it, since pixels outside the mask stay as they are.
    """
    width, height = source
    if mask and all(side % multiple == 0 and low <= side <= high for side in source):
        return source
    ratio = width / height
    # About a megapixel, to multiples of 32; a side that would pass the limit takes the limit and the other follows.
    width = min(high, round((EDIT_AREA * ratio) ** 0.5 / 32) * 32)
    height = min(high, round((EDIT_AREA / ratio) ** 0.5 / 32) * 32)
    if width == high:
        height = round(width / ratio / 32) * 32
    elif height == high:
        width = round(height * ratio / 32) * 32
    return max(low, width), max(low, height)
