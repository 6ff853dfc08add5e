"""Transparency: kept from the input picture to the model and from the model to the file, where the job wants it.

Alpha is straight, as files and the VAE of Qwen-Image-2.1 have it: a picture's colours do not depend on it, and are kept
beneath what is transparent. A picture without alpha is opaque. Knows nothing of torch or of file formats.
"""

from typing import TYPE_CHECKING

from PIL import Image

from ..jobs.request import Drawing
from .colour import PROFILE
from .images import as_rgb, flatten

if TYPE_CHECKING:
    from ..jobs.values import Warn

# A model that draws alpha draws opaque pixels a few levels below 255 too. A picture is one with transparency where at
# least `SHARE` of its pixels are more see-through than `SEE_THROUGH`.
SEE_THROUGH, SHARE = 192, 0.001
WITH_ALPHA = ("LA", "RGBA")


def is_see_through(picture: Image.Image) -> bool:
    """Whether a viewer would see something behind the picture."""
    if picture.mode not in WITH_ALPHA:
        return False
    levels = picture.getchannel("A").histogram()
    return sum(levels[:SEE_THROUGH]) >= SHARE * picture.width * picture.height


def as_asked(picture: Image.Image, request: Drawing, warn: "Warn") -> Image.Image:
    """The picture with its alpha where the request wants it, else on white, with the profile that it has.

    `warn` is told of a picture that has nothing transparent and was to have.
    """
    if picture.mode not in WITH_ALPHA:
        return picture
    shows = is_see_through(picture)
    if request.background == "transparent":
        if not shows:
            warn("the model drew nothing transparent; say in the prompt what is to be see-through, or try another seed")
        return picture
    if shows and request.background == "auto" and request.output_format != "jpeg":
        return picture
    flat = flatten(picture)
    flat.info = {name: picture.info[name] for name in (PROFILE,) if name in picture.info}
    return flat


def to_opaque(picture: Image.Image) -> Image.Image:
    """RGB of a picture of sRGB, on white where it is transparent; the picture itself where it is that already."""
    return as_rgb(flatten(picture))


def blend(picture: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """RGBA: the picture where the mask is 255, the source where it is 0, to the bit, and between them what lies between.

    Both may have alpha. What lies between is mixed with colours weighted by it: none comes from what is transparent.
    """
    picture, source = picture.convert("RGBA"), source.convert("RGBA")
    mixed = Image.composite(picture.convert("RGBa"), source.convert("RGBa"), mask).convert("RGBA")
    mixed.paste(source, mask=mask.point([255] + [0] * 255))
    mixed.paste(picture, mask=mask.point([0] * 255 + [255]))
    return mixed


def with_alpha(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGBA of a picture's colours and another one's alpha, which has its size; RGB where that is opaque all over."""
    if alpha.getextrema()[0] == 255:
        return colours
    joined = colours.convert("RGBA")
    joined.putalpha(alpha)
    return joined

