"""PIL stand-ins for when a model could not be loaded: a gradient with the prompt on it, or a filter on the given image.

They keep the reply's shape (right size, repeatable, milliseconds) and nothing else: no picture here was generated.
Knows nothing of why the model is missing; the reply says that.
"""

import hashlib
import re
import textwrap

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from ..jobs.request import Drawing
from .masks import restore_outside


def draw(request: Drawing, sources: list[Image.Image], mask: Image.Image | None, size) -> list[Image.Image]:
    """One RGB stand-in of `size` for each of the request's seeds."""
    return [stand_in(request, sources, mask, size, seed) for seed in request.seeds]


def stand_in(request: Drawing, sources: list[Image.Image], mask: Image.Image | None, size, seed: int) -> Image.Image:
    if not sources:
        return gradient(request.prompt, size, seed)
    source = sources[0].resize(size, Image.Resampling.BICUBIC)
    picture = FILTERS[chosen_filter(request.prompt)](source)
    return restore_outside(picture, source, mask) if mask is not None else picture


def gradient(prompt: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A diagonal gradient between two colours that follow from the prompt and the seed, with the prompt drawn on it."""
    digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
    ramp = Image.linear_gradient("L").rotate(45 if digest[6] % 2 else -45, resample=Image.Resampling.BILINEAR)
    ramp = ramp.crop((64, 64, 192, 192)).resize(size, Image.Resampling.BILINEAR)
    # Two halves of the value range: the text stays legible and the colours never meet.
    dark, light = (tuple(part // 2 for part in digest[:3]), tuple(128 + part // 2 for part in digest[3:6]))
    picture = ImageOps.colorize(ramp, dark, light)
    write(picture, prompt)
    return picture


def write(picture: Image.Image, prompt: str) -> None:
    font = ImageFont.load_default(max(12, picture.width // 32))
    lines = textwrap.wrap(prompt, width=48)[:8]
    ImageDraw.Draw(picture).multiline_text(
        (picture.width // 2, picture.height // 2), "\n".join(lines), fill="white", font=font, anchor="mm",
        align="center", stroke_width=2, stroke_fill="black",
    )  # fmt: skip


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), "#1e1408", "#ffe9c4", mid="#a07a4a")


def tint(picture: Image.Image) -> Image.Image:
    """What is done when no word of the prompt names a filter."""
    return ImageEnhance.Color(ImageEnhance.Contrast(picture).enhance(1.1)).enhance(1.3)


FILTERS = {
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 200)),
    "sharp": lambda picture: picture.filter(ImageFilter.UnsharpMask(radius=3, percent=150)),
    "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "dark": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "sepia": sepia,
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.5),
    "invert": ImageOps.invert,
    "tint": tint,
}
FILTERS["grey"] = lambda picture: ImageOps.grayscale(picture).convert("RGB")

# Beginnings of words; the first that the prompt holds chooses, and the order settles prompts that hold several.
WORDS = {
    "blur": "blur", "sharp": "sharp", "black and white": "grey", "monochrom": "grey", "grayscale": "grey",
    "greyscale": "grey", "sepia": "sepia", "vintage": "sepia", "old photo": "sepia", "invert": "invert",
    "negative": "invert", "contrast": "contrast", "night": "dark", "dark": "dark", "bright": "bright",
    "sunny": "bright",
}  # fmt: skip


def chosen_filter(prompt: str) -> str:
    words = prompt.lower()
    return next((name for word, name in WORDS.items() if re.search(rf"\b{word}", words)), "tint")
