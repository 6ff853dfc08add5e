"""PIL images to the bytes of files: PNG, WebP, JPEG or AVIF, with their colour space, their mark and their texts.

Knows nothing of what follows when a file is too large (`delivery.py`).
"""

import io
import zlib
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .colour import PROFILE, srgb_profile, to_srgb
from .deep import write_png
from .encodings import DEFAULT_QUALITIES
from .images import flatten
from .marks import XMP_KEY
from .parameters import PARAMETERS_KEY, PNG_NAMES, exif_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AVIF_SPEED = 8  # of 10: a megapixel takes half a second of a core, and at 6 twice that for 3 % fewer bytes


def encode_picture(picture: Image.Image, output_format: str, quality: int | None = None) -> bytes:
    """The bytes of a `png`, a `webp` (lossless unless a quality of 1 to 100 is given), a `jpeg` or an `avif` file.

    The file says which colour space its numbers are of: that of the picture's own profile, else sRGB. It has the mark
    that `marks.mark_pictures` and the texts that `parameters.embed_parameters` have put into the picture.
    """
    xmp: bytes | None = picture.info.get(XMP_KEY)
    texts: tuple[str, str] | None = picture.info.get(PARAMETERS_KEY)
    if output_format in ("webp", "avif") and picture.mode in ("L", "LA"):
        picture = in_rgb(picture)
    elif output_format == "jpeg" and picture.mode in ("LA", "RGBA"):
        profile_info, picture = picture.info, flatten(picture)
        picture.info = {PROFILE: profile_info.get(PROFILE)}
    options: dict[str, Any] = {
        "png": {"compress_level": 1},  # `optimize` would cost twice the time for 15 % fewer bytes
        "webp": {"quality": quality} if quality else {"lossless": True, "method": 0, "quality": 0},
        "jpeg": {"quality": quality or DEFAULT_QUALITIES["jpeg"]},
        "avif": {"quality": quality or DEFAULT_QUALITIES["avif"], "speed": AVIF_SPEED},
    }[output_format]
    if output_format == "webp" and picture.mode == "RGBA":
        options["exact"] = True  # keeps the colours beneath what is transparent, as PNG does
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


def in_rgb(picture: Image.Image) -> Image.Image:
    """A grey picture in sRGB, with its alpha: files without grey have it so, and a grey profile fits nothing else."""
    converted = to_srgb(picture.getchannel("L") if picture.mode == "LA" else picture)
    if picture.mode == "LA":
        converted.putalpha(picture.getchannel("A"))
    return converted


def encode_deep(numbers: "NDArray[np.uint16]", info: dict[Any, Any]) -> bytes:
    """The bytes of a PNG of 16 bits, with what `encode_picture` takes from a picture's `info`.

    numbers: (height, width, 1 to 4).
    """
    profile: bytes | None = info.get(PROFILE)
    texts = png_chunks(info.get(XMP_KEY), info.get(PARAMETERS_KEY), is_srgb=not profile)
    chunks = [(b"iCCP", b"profile\0\0" + zlib.compress(profile))] if profile else []
    return write_png(numbers, chunks + [(kind, content) for kind, content, *_ in texts.chunks])


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
