"""PIL images to the bytes of files: PNG, WebP or JPEG, with their colour space, their mark and their texts.

Knows nothing of what follows when a file is too large (`delivery.py`).
"""

import io
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .colour import PROFILE, srgb_profile, to_srgb
from .marks import XMP_KEY
from .parameters import PARAMETERS_KEY, PNG_NAMES, exif_of

JPEG_QUALITY = 92


def encode_picture(picture: Image.Image, output_format: str, quality: int | None = None) -> bytes:
    """The bytes of a `png`, a `webp` (lossless unless a quality of 1 to 100 is given) or a `jpeg` file.

    The file says which colour space its numbers are of: that of the picture's own profile, else sRGB. It has the mark
    that `marks.mark_pictures` and the texts that `parameters.embed_parameters` have put into the picture.
    """
    xmp: bytes | None = picture.info.get(XMP_KEY)
    texts: tuple[str, str] | None = picture.info.get(PARAMETERS_KEY)
    if output_format == "webp" and picture.mode == "L":  # WebP has no grey, and a grey profile fits nothing else
        picture = to_srgb(picture)
    options: dict[str, Any] = {
        "png": {"compress_level": 1},  # `optimize` would cost twice the time for 15 % fewer bytes
        "webp": {"quality": quality} if quality else {"lossless": True, "method": 0, "quality": 0},
        "jpeg": {"quality": quality or JPEG_QUALITY},
    }[output_format]
    profile = picture.info.get(PROFILE) or (None if output_format == "png" else srgb_profile())
    if profile:
        options["icc_profile"] = profile
    if output_format == "png":
        options["pnginfo"] = png_chunks(xmp, texts, is_srgb=not profile)
    else:
        options |= {"xmp": xmp} if xmp else {}
        options |= {"exif": exif_of(*texts)} if texts else {}
    buffer = io.BytesIO()
    picture.save(buffer, format=output_format.upper(), **options)
    return buffer.getvalue()


def png_chunks(xmp: bytes | None, texts: tuple[str, str] | None, is_srgb: bool) -> PngInfo:
    """What a PNG has beside its pixels. `is_srgb`: whether it says, in 13 bytes, what a profile would say in 300."""
    chunks = PngInfo()
    if is_srgb:
        chunks.add(b"sRGB", b"\0")
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for name, text in zip(PNG_NAMES, texts or (), strict=False):
        # The plain chunk is Latin-1, which some readers take for UTF-8.
        if text.isascii():
            chunks.add_text(name, text)
        else:
            chunks.add_itxt(name, text)
    return chunks
