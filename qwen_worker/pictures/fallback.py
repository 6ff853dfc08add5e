"""PIL stand-ins for when a model could not be loaded: a gradient with the prompt on it, or a filter on the input image.

A stand-in has the size asked for, is the same for the same job, and takes milliseconds; no model has generated it, and
a band across it says so. Knows nothing of why the model is missing; the reply says that.
"""

import hashlib
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from ..jobs.request import Drawing
from ..jobs.tasks import Layers
from .alpha import on_white, to_opaque
from .canvas import Canvas
from .layers import stand_in_layers
from .photo import profiled, to_picture

BAND_WORDS = ("STAND-IN\nNO MODEL", "STAND-IN: NO MODEL")  # the words of the band, on two lines or on one
# Of a band with the picture's long side as 1: how much of it the words fill, and how high the band may be in a picture
# that is lower than two of them. A thumbnail of 128 pixels then has letters of 10 pixels and more.
BAND_FILL, LOW_BAND = 0.8, 0.2
UPRIGHT_ASPECT = 1.6  # a picture that is taller than so many times its width has its band from bottom to top


def draw(request: Drawing, canvas: Canvas) -> list[Image.Image]:
    """One RGB stand-in of the canvas' `result_size` for each of the request's seeds; for layers as many, RGBA."""
    if isinstance(request, Layers):
        return stand_in_layers(with_band(canvas.sources[0].resize(canvas.result_size)), request.num_layers)
    canvas = replace(canvas, matching=None)  # no edit, and so nothing to compare
    return [stand_in(request, canvas, seed) for seed in request.seeds]


def stand_in(request: Drawing, canvas: Canvas, seed: int) -> Image.Image:
    """A filter on the picture that is edited, inside the mask where there is one; without a picture a gradient.

    The band lies over either, also outside the mask: nobody takes the caller's own picture for an edited one.
    """
    edited = canvas.start or next(iter(canvas.sources), None)
    if not edited:
        return with_band(gradient(request.prompt, canvas.result_size, seed))
    edited = to_opaque(edited)
    if canvas.stitch:
        whole = canvas.stitch.whole(FILTERS[filter_name(request.prompt)](edited))
        if not isinstance(whole, Image.Image):
            whole = profiled(to_picture(whole), canvas.stitch.photo.profile)
        return with_band(on_white(whole))
    source = edited.resize(canvas.size if canvas.inset else canvas.result_size, Image.Resampling.LANCZOS)
    return with_band(on_white(canvas.finish(FILTERS[filter_name(request.prompt)](source))))


def gradient(prompt: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A diagonal gradient between two colours that follow from the prompt and the seed, with the prompt drawn on it."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    ramp = Image.linear_gradient("L").rotate(45 if digest[6] % 2 else -45, resample=Image.Resampling.BILINEAR)
    ramp = ramp.crop((64, 64, 192, 192)).resize(size, Image.Resampling.BILINEAR)
    # The two colours are of the two halves of the value range: they never meet, and the text stays legible.
    dark, light = (tuple(part // 2 for part in digest[:3]), tuple(128 + part // 2 for part in digest[3:6]))
    picture = ImageOps.colorize(ramp, dark, light)
    write_prompt(picture, prompt)
    return picture


def write_prompt(picture: Image.Image, prompt: str) -> None:
    """Draw at most eight lines of the prompt below the picture's upper edge; the middle is the band's."""
    font = ImageFont.load_default(max(12, picture.width // 32))
    lines = textwrap.wrap(prompt, width=48)[:8]
    ImageDraw.Draw(picture).multiline_text(
        (picture.width // 2, picture.height // 64), "\n".join(lines), fill="white", font=font, anchor="ma",
        align="center", stroke_width=2, stroke_fill="black",
    )  # fmt: skip


def with_band(picture: Image.Image) -> Image.Image:
    """A picture of mode L or RGB with the band across its middle, and with the profile that it has."""
    is_upright = picture.height > UPRIGHT_ASPECT * picture.width
    width, height = reversed(picture.size) if is_upright else picture.size
    words = max(BAND_WORDS, key=lambda text: band_font_size(text, width, height))
    size = band_font_size(words, width, height)
    band = Image.new("L", (width, min(height, round(size * 1.15 * (1 + words.count("\n")) + size * 0.2))))
    ImageDraw.Draw(band).multiline_text(
        (width // 2, band.height // 2), words, fill=255, font=ImageFont.load_default(size), anchor="mm",
        align="center", spacing=round(size * 0.1), stroke_width=size // 24,
    )  # fmt: skip
    band = band.rotate(90, expand=True) if is_upright else band
    marked = picture.copy()
    marked.paste(band, ((picture.width - band.width) // 2, (picture.height - band.height) // 2))
    return marked


def band_font_size(words: str, width: int, height: int) -> int:
    """The largest size in pixels at which the words fit into the band of a picture of this width and height."""
    font = ImageFont.load_default(100)
    longest = max(font.getlength(line) for line in words.splitlines())
    band_height = min(height, max(height / 2, width * LOW_BAND))
    size = min(100 * width * BAND_FILL / longest, band_height / (1.15 * (1 + words.count("\n")) + 0.2))
    return max(1, int(size))  # in a picture of a few pixels nobody reads them


def grey(picture: Image.Image) -> Image.Image:
    return ImageOps.grayscale(picture).convert("RGB")


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), "#1e1408", "#ffe9c4", mid="#a07a4a")


def tint(picture: Image.Image) -> Image.Image:
    """The filter of a prompt that names none."""
    return ImageEnhance.Color(ImageEnhance.Contrast(picture).enhance(1.1)).enhance(1.3)


FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 200)),
    "sharp": lambda picture: picture.filter(ImageFilter.UnsharpMask(radius=3, percent=150)),
    "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "dark": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "grey": grey,
    "sepia": sepia,
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.5),
    "invert": ImageOps.invert,
    "tint": tint,
}

# By the beginning of a word, the filter of a prompt that holds the word; of several the first in this order counts.
FILTER_WORDS = {
    "blur": "blur", "sharp": "sharp", "black and white": "grey", "monochrom": "grey", "grayscale": "grey",
    "greyscale": "grey", "sepia": "sepia", "vintage": "sepia", "old photo": "sepia", "invert": "invert",
    "negative": "invert", "contrast": "contrast", "night": "dark", "dark": "dark", "bright": "bright",
    "sunny": "bright",
}  # fmt: skip


def filter_name(prompt: str) -> str:
    """The filter that the prompt names, else tint."""
    text = prompt.lower()
    return next((name for word, name in FILTER_WORDS.items() if re.search(rf"\b{word}", text)), "tint")
