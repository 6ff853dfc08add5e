"""PIL stand-ins for when a model could not be loaded: a gradient with the prompt on it, or a filter on the input image.

A stand-in has the size asked for, is the same for the same job, and takes milliseconds; no model has generated it.
Knows nothing of why the model is missing; the reply says that.
"""

import hashlib
import re
import textwrap
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from ..jobs.request import Drawing
from .inputs import Canvas


def draw(request: Drawing, canvas: Canvas) -> list[Image.Image]:
    """One stand-in of the canvas' size for each of the request's seeds."""
    return [stand_in(request, canvas, seed) for seed in request.seeds]


def stand_in(request: Drawing, canvas: Canvas, seed: int) -> Image.Image:
    """A filter on the first source, inside the mask where there is one; without a source a gradient."""
    if not canvas.sources:
        return gradient(request.prompt, canvas.size, seed)
    source = canvas.sources[0].resize(canvas.size, Image.Resampling.BICUBIC)
    return canvas.restore(FILTERS[filter_name(request.prompt)](source))


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
    """Draw at most eight lines of the prompt into the middle of the picture."""
    font = ImageFont.load_default(max(12, picture.width // 32))
    lines = textwrap.wrap(prompt, width=48)[:8]
    ImageDraw.Draw(picture).multiline_text(
        (picture.width // 2, picture.height // 2), "\n".join(lines), fill="white", font=font, anchor="mm",
        align="center", stroke_width=2, stroke_fill="black",
    )  # fmt: skip


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
