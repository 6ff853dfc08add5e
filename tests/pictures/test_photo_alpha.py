"""A part of a photo drawn by a model that draws transparency: the photo comes back around it all the same."""

import numpy as np
import pytest
from PIL import Image

from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.values import ignore
from qwen_worker.pictures.alpha import appearances
from qwen_worker.pictures.canvas import Canvas, finish_drawing
from qwen_worker.pictures.deep import read_deep, write_png
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.images import load_picture
from qwen_worker.pictures.photo import Photo, open_photo
from qwen_worker.pictures.stitch import stitch_of

BOX = (500, 500, 900, 900)  # the mask
NOISE = np.random.default_rng(0)


def photo_of(mode):
    numbers = NOISE.integers(0, 256, (1000, 1100, len(mode)), np.uint8)
    return Photo(Image.fromarray(numbers))


def stitched(photo, opacity, background):
    """The whole photo, and the warnings, of a red drawing of this opacity inside the mask, and see-through outside."""
    mask = Image.new("L", photo.size)
    mask.paste(255, BOX)
    warnings = []
    stitch = stitch_of(photo, mask, None, False, warnings.append)
    drawn = Image.new("RGBA", stitch.frame.drawn, (255, 0, 0, 0))
    drawn.paste((255, 0, 0, opacity), mask=stitch.drawn_mask)
    request = parse({"prompt": "a", "image": "aa", "mask_image": "aa", "background": background}, "job")
    canvas = Canvas([], stitch.drawn_mask, stitch.frame.drawn, photo.size, stitch=stitch)
    part = finish_drawing(drawn, request, canvas, warnings.append)
    assert canvas.stitch is part.info["worker_stitch"]
    return part, stitch.whole(part), warnings


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    ("background", "opacity", "has_alpha", "inside"),
    [
        ("auto", 255, False, (255, 0, 0)), ("auto", 100, True, (255, 0, 0, 100)),
        ("opaque", 100, False, (255, 155, 155)), ("transparent", 0, True, (0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_what_a_model_draws_transparent_is_so_inside_the_mask_alone(mode, background, opacity, has_alpha, inside):
    photo = photo_of(mode)
    part, whole, warnings = stitched(photo, opacity, background)
    assert (part.mode == "RGBA") == has_alpha and not warnings
    assert whole.mode == ("RGBA" if has_alpha else mode) and whole.size == photo.size
    assert whole.getpixel((700, 700))[: len(inside)] == inside
    before, after = np.asarray(photo.picture.convert("RGBA")).copy(), np.asarray(whole.convert("RGBA")).copy()
    for numbers in (before, after):
        numbers[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 0
    assert (before == after).all()
    assert encode_picture(whole, "jpeg") and encode_picture(whole, "webp")


def test_a_photo_of_16_bits_gets_transparency_too():
    deep = NOISE.integers(0, 65536, (1000, 1100, 3), np.uint16)
    _, whole, _ = stitched(Photo(None, deep), 0, "auto")
    assert whole.dtype == np.uint16 and whole[700, 700].tolist() == [0, 0, 0, 0]
    assert (whole[:500, :, :3] == deep[:500]).all() and (whole[:500, :, 3] == 65535).all()


def test_a_caller_is_told_where_nothing_in_the_mask_was_drawn_transparent():
    _, _, warnings = stitched(photo_of("RGB"), 255, "transparent")
    assert len(warnings) == 1 and warnings[0].startswith("the model drew nothing transparent")


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_a_photo_hides_beneath_its_transparency_is_seen_by_whoever_checks_it(mode, deep):
    """The file that comes back has it too: the photo is the caller's own outside the mask."""
    hidden = Image.new("RGBA", (1600, 1200), (255, 255, 255, 255))
    hidden.paste((200, 200, 200, 0), (400, 300, 1200, 900))
    numbers = np.asarray(hidden.convert(mode))
    photo = Photo(None, numbers.astype(np.uint16) * 257) if deep else Photo(Image.fromarray(numbers))
    on_white, colours = appearances(photo.thumbnail(800))
    assert on_white.size == colours.size == (800, 600)
    assert on_white.getpixel((400, 300)) == (255, 255, 255) and colours.getpixel((400, 300)) == (200, 200, 200)


def test_a_grey_photo_of_16_bits_with_alpha_gets_colours():
    """Pillow reads such a PNG as RGBA."""
    numbers = np.full((300, 400, 2), 40_000, np.uint16)
    data = write_png(numbers, [])
    deep = read_deep(data, "image", (400, 300), ignore)
    photo = open_photo(load_picture(data, "image", ignore), deep, "image", ignore)
    mask = Image.new("L", photo.size)
    mask.paste(255, (100, 100, 200, 200))
    stitch = stitch_of(photo, mask, None, False, ignore)
    whole = stitch.whole(Image.new("RGB", stitch.frame.drawn, (255, 0, 0)))
    assert whole[150, 150].tolist() == [65535, 0, 0, 65535] and (whole[:100] == 40_000).all()
