"""The stand-ins keep size and repeatability, follow the prompt, and cost milliseconds' worth of work."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.values import ignore
from qwen_worker.pictures import fallback
from qwen_worker.pictures.canvas import Canvas
from qwen_worker.pictures.colour import space_of
from qwen_worker.pictures.photo import Photo, profiled
from qwen_worker.pictures.stitch import stitch_of

from ..support.profiles import DISPLAY_P3


def request(**fields):
    return parse({"prompt": "a cat", "seed": 1, **fields}, "job")


def differ(a, b):
    return ImageChops.difference(a, b).getbbox() is not None


@pytest.mark.parametrize("size", [(256, 2048), (512, 512), (2048, 256)])
def test_a_gradient_has_the_size_asked_for_and_is_repeatable(size):
    first, again = (fallback.draw(request(), Canvas([], None, size))[0] for _ in range(2))
    assert (first.size, first.mode) == (size, "RGB") and not differ(first, again)


def test_the_prompt_is_drawn_and_the_seed_changes_the_picture():
    blank, cat = (fallback.gradient(prompt, (512, 512), 1) for prompt in (" ", "a cat"))
    assert differ(blank, cat)
    one, two = fallback.draw(request(num_images=2), Canvas([], None, (512, 512)))
    assert differ(one, two)
    assert not differ(two, fallback.draw(request(seed=2), Canvas([], None, (512, 512)))[0])


def test_a_prompt_of_any_characters_is_drawn():
    for prompt in ("x" * 2000, "红色的圆" * 100, "\n\t\0", "🦆 {}%s"):
        fallback.gradient(prompt, (256, 256), 1)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Blur the background", "blur"),
        ("make it black and white", "grey"),
        ("a vintage look", "sepia"),
        ("at NIGHT", "dark"),
        ("brighter", "bright"),
        ("put a hat on it", "tint"),
        ("make it bold", "tint"),
        ("a delightful garden", "tint"),
    ],
)
def test_the_prompt_chooses_the_filter(prompt, name):
    assert fallback.filter_name(prompt) == name


@pytest.mark.parametrize("name", list(fallback.FILTERS))
def test_every_filter_changes_the_picture_and_keeps_its_form(name):
    picture = Image.effect_noise((64, 48), 60).convert("RGB")
    picture.paste("orange", (0, 0, 32, 48))
    found = fallback.FILTERS[name](picture)
    assert (found.size, found.mode) == (picture.size, "RGB") and differ(found, picture)


def test_every_word_names_a_filter():
    assert set(fallback.FILTER_WORDS.values()) <= set(fallback.FILTERS)


def read_words(thumbnail, likely):
    """The one of the likely lines of text that the bright pixels of a thumbnail's black band look most like."""
    pixels = np.asarray(thumbnail.convert("L"), dtype=float)
    rows = np.flatnonzero((pixels < 60).mean(axis=1) > 0.4)  # the band's
    band = pixels[rows[0] : rows[-1] + 1]
    lit = np.argwhere(band > 128)
    (top, left), (bottom, right) = lit.min(axis=0), lit.max(axis=0) + 1
    found = band[top:bottom, left:right]
    likeness = {text: np.corrcoef(found.ravel(), template(text, found.shape).ravel())[0, 1] for text in likely}
    best = max(likeness, key=likeness.get)
    return best if likeness[best] > 0.75 else f"nothing, {likeness}"


def template(text, shape):
    picture = Image.new("L", (2000, 600))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(100)
    pen.multiline_text((1000, 300), text, 255, font=font, anchor="mm", align="center", stroke_width=4, spacing=10)
    return np.asarray(picture.crop(picture.getbbox()).resize(shape[::-1], Image.Resampling.LANCZOS), dtype=float)


LIKELY = ("STAND-IN\nNO MODEL", "STANDING\nNU MODAL", "FINISHED\nBY MODEL", "STAND-IN: NO MODEL", "STANDING, NU MODAL")


@pytest.mark.parametrize(
    "size", [(256, 256), (1024, 1024), (832, 1248), (928, 1664), (1664, 928), (2048, 256), (256, 2048)]
)
@pytest.mark.parametrize("kind", ["gradient", "filter", "masked", "grey"])
def test_a_thumbnail_of_128_pixels_still_says_that_it_is_a_stand_in(size, kind):
    source = Image.effect_noise(size, 60).convert("RGB")
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 8, size[1] // 8))  # the band lies outside it
    original = source.convert("L") if kind == "grey" else None
    canvases = {
        "gradient": Canvas([], None, size),
        "filter": Canvas([source], None, size),
        "masked": Canvas([source], mask, size, original=original, start=source),
    }
    fields = {} if kind == "gradient" else {"image": "aGk="}
    canvas = canvases["masked" if kind == "grey" else kind]
    found = fallback.draw(request(prompt="invert it", **fields), canvas)[0]
    assert (found.size, found.mode) == (size, "L" if original else "RGB")
    found.thumbnail((128, 128), Image.Resampling.BICUBIC)
    if size[1] > 1.6 * size[0]:
        found = found.rotate(-90, expand=True)
    is_one_line = max(size) == 8 * min(size)
    assert read_words(found, LIKELY) == ("STAND-IN: NO MODEL" if is_one_line else "STAND-IN\nNO MODEL")


def test_outside_the_mask_and_the_band_nothing_changes():
    source = Image.effect_noise((256, 256), 60).convert("RGB")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (64, 8, 192, 48))
    found = fallback.draw(
        request(image="aGk=", prompt="invert"), Canvas([source], mask, (1024, 1024), source.size, start=source)
    )[0]
    found.paste(source.crop((0, 72, 256, 184)), (0, 72))  # over the band
    assert ImageChops.difference(found, source).getbbox() == (64, 8, 192, 48)


@pytest.mark.parametrize("size", [(1, 1), (8, 1), (1, 5)])
def test_the_smallest_pictures_have_a_stand_in_too(size):
    """An edit whose result is as large as its input may have any size."""
    assert fallback.with_band(Image.new("RGB", size)).size == size


def test_the_stand_in_of_a_photo_of_16_bits_has_its_profile():
    space = space_of(profiled(Image.new("RGB", (1, 1)), DISPLAY_P3), "image", ignore)
    photo = Photo(None, np.zeros((300, 400, 3), np.uint16), space)
    mask = Image.new("L", photo.size, 255)
    stitch = stitch_of(photo, mask, None, False, ignore)
    canvas = Canvas([], mask, stitch.frame.drawn, photo.size, stitch=stitch, start=photo.framed(stitch.frame))
    (drawn,) = fallback.draw(request(task="edit", image="aa", mask_image="aa"), canvas)
    assert drawn.info["icc_profile"] == DISPLAY_P3 and drawn.size == photo.size
