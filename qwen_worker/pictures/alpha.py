"""Transparency: kept from the input picture to the model and from the model to the file, where the job wants it.

Alpha is straight, as files and the VAE of Qwen-Image-2.1 have it: a picture's colours do not depend on it, and are kept
beneath what is transparent. A picture without alpha is opaque. Knows nothing of torch or of file formats.
"""

from typing import TYPE_CHECKING, Any

from PIL import Image

from ..jobs.request import Drawing
from .colour import PROFILE, in_space_of
from .images import as_rgb, flatten
from .matching import COMPARISON
from .photo import STITCH_KEY

if TYPE_CHECKING:
    from ..jobs.values import Warn

# A model that draws alpha draws opaque pixels a few levels below 255 too. A picture is one with transparency where at
# least `SHARE` of its pixels are more see-through than `SEE_THROUGH`.
SEE_THROUGH, SHARE = 192, 0.001
WITH_ALPHA = ("LA", "RGBA")


def is_see_through(picture: Image.Image, mask: Image.Image | None = None) -> bool:
    """Whether a viewer would see something behind the picture, or behind what a mask of its size has above 0."""
    if picture.mode not in WITH_ALPHA:
        return False
    levels = picture.getchannel("A").histogram(mask)
    return sum(levels[:SEE_THROUGH]) >= SHARE * sum(levels)


def as_asked(picture: Image.Image, request: Drawing, warn: "Warn", mask: Image.Image | None = None) -> Image.Image:
    """The picture with its alpha where the request wants it, else on white, with the profile that it has.

    `mask`: of what is used of the picture, where that is not all. `warn` is told of a picture that has nothing
    transparent and was to have.
    """
    if picture.mode not in WITH_ALPHA:
        return picture
    shows = is_see_through(picture, mask)
    if request.background == "transparent":
        if not shows:
            warn("the model drew nothing transparent; say in the prompt what is to be see-through, or try another seed")
        return picture
    if shows and request.background == "auto" and request.output_format != "jpeg":
        return picture
    return on_white(picture)


def on_white(picture: Image.Image) -> Image.Image:
    """The picture without its alpha, with its profile, its comparison, and the photo that it is a part of."""
    flat = flatten(picture)
    if flat is not picture:
        flat.info = {name: picture.info[name] for name in (PROFILE, COMPARISON, STITCH_KEY) if name in picture.info}
    return flat


def to_opaque(picture: Image.Image) -> Image.Image:
    """RGB of a picture of sRGB, on white where it is transparent; the picture itself where it is that already."""
    return as_rgb(flatten(picture))


def blend(picture: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """RGBA: the picture where the mask is 255 and the source where it is 0, to the bit, and else what lies between.

    The picture, which is sRGB, is brought to the colour space of the source, RGB or RGBA, and the result has its
    profile. What lies between is mixed with colours weighted by their alpha: none comes from what is transparent.
    """
    profile: dict[str | tuple[int, int], Any] = {name: source.info[name] for name in (PROFILE,) if name in source.info}
    below, above = source.convert("RGBA"), picture.convert("RGBA")
    if profile:
        colours = source.convert("RGB")
        colours.info = profile
        own = in_space_of(picture.convert("RGB"), colours).convert("RGBA")
        own.putalpha(above.getchannel("A"))
        above = own
    mixed = Image.composite(above.convert("RGBa"), below.convert("RGBa"), mask).convert("RGBA")
    mixed.paste(below, mask=mask.point([255] + [0] * 255))
    mixed.paste(above, mask=mask.point([0] * 255 + [255]))
    mixed.info = profile
    return mixed


def appearances(picture: Image.Image) -> list[Image.Image]:
    """What a viewer may see of it: the picture; of one with transparency it on white, and its colours alone."""
    if picture.mode not in WITH_ALPHA:
        return [picture]
    hidden = picture.convert(picture.mode.removesuffix("A"))  # keeps the profile
    return [on_white(picture), hidden]
