"""Masks of every make: what is repainted is what their maker meant, or they are refused with the way to say it."""

import pytest
from PIL import Image

from qwen_worker.errors import JobError
from qwen_worker.pictures.masks import decode_mask

from ..conftest import file_of

BOX = (10, 10, 30, 30)


def painted(mode, ground, colour, size=(64, 64)):
    mask = Image.new(mode, size, ground)
    mask.paste(colour, BOX)
    return mask


def decoded(mask, size=(64, 64), mask_from=None, **options):
    return decode_mask(file_of(mask, **options), "mask_image", size, pytest.fail, mask_from)


def test_a_mask_becomes_black_and_white():
    found = decoded(painted("L", 0, 200))
    assert (found.mode, found.getbbox(), found.getextrema()) == ("L", BOX, (0, 255))
    with pytest.raises(JobError, match="has no white pixel"):
        decoded(Image.new("L", (64, 64), 100))


@pytest.mark.parametrize(
    ("size", "is_fitted"),
    [
        ((64, 64), True),
        ((63, 65), True),  # rounded
        ((128, 128), True),  # of the photo before it was made smaller
        ((32, 32), True),
        ((500, 495), True),
        ((66, 64), False),
        ((64, 32), False),
        ((500, 480), False),
    ],
)
def test_a_mask_that_differs_by_rounding_or_in_scale_is_fitted(size, is_fitted):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    if is_fitted:
        found = decoded(mask)
        assert found.size == (64, 64) and found.getextrema() == (0, 255)
        left, top, right, bottom = found.getbbox()
        assert (left, top, bottom) == (0, 0, 64) and right in (31, 32)
    else:
        with pytest.raises(JobError, match=f"must have the size of the image, 64x64, or its aspect, not {size[0]}x"):
            decoded(mask)


WHITE, CLEAR = (255, 255, 255, 255), (255, 255, 255, 0)
# What opaque pixels are, and transparent ones: by colour nobody can tell which of the two is meant.
UNCLEAR = {
    "white with a hole": painted("RGBA", WHITE, (0, 0, 0, 0)),
    "white paint on nothing": painted("RGBA", (0, 0, 0, 0), WHITE),
    "black with a hole": painted("RGBA", (0, 0, 0, 255), CLEAR),
    "a photo with a hole": painted("RGBA", (120, 90, 60, 255), CLEAR),
    "grey with a hole": painted("LA", (255, 255), (255, 0)),
}


@pytest.mark.parametrize("mask", UNCLEAR.values(), ids=UNCLEAR)
def test_a_mask_that_only_transparency_gives_a_meaning_is_refused_with_the_way_to_say_it(mask):
    with pytest.raises(
        JobError, match="invalid_input: mask_image has transparent pixels, .* send mask_from: 'alpha' rep"
    ):
        decoded(mask)


def test_a_palette_s_transparent_colour_counts():
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.paste(1, BOX)
    with pytest.raises(JobError, match="send mask_from"):
        decoded(palette, transparency=1)
    assert decoded(palette, transparency=1, mask_from="alpha").getbbox() == BOX


def test_mask_from_says_what_is_repainted():
    hole = UNCLEAR["white with a hole"]
    assert decoded(hole, mask_from="alpha").getbbox() == BOX
    assert decoded(hole, mask_from="white").getpixel((20, 20)) == 0
    assert decoded(hole, mask_from="white").getpixel((40, 40)) == 255
    assert decoded(UNCLEAR["white paint on nothing"], mask_from="white").getbbox() == BOX
    assert decoded(UNCLEAR["a photo with a hole"], mask_from="alpha").getbbox() == BOX


@pytest.mark.parametrize("mask", [painted("RGB", "black", "white"), painted("RGBA", (0, 0, 0, 255), WHITE)])
def test_a_mask_that_is_opaque_has_nothing_for_alpha(mask):
    with pytest.raises(
        JobError, match="must be transparent where the picture is repainted, and has no transparent pixel"
    ):
        decoded(mask, mask_from="alpha")
    assert decoded(mask).getbbox() == BOX


def test_black_and_white_with_soft_transparent_edges_means_its_colours():
    mask = painted("RGBA", (0, 0, 0, 255), WHITE)
    mask.paste((0, 0, 0, 0), (0, 0, 64, 2))
    assert decoded(mask).getbbox() == BOX
