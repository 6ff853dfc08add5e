"""Which part of a photo an edit with a mask draws: the mask's surroundings, of the model's size, and not zoomed."""

import itertools
import random

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.pictures.crop import OVERHANG, frame_of
from qwen_worker.pictures.sizes import conditioning_size

PHOTOS = [(4000, 3000), (3000, 4000), (8660, 5773), (1200, 900), (9000, 200), (200, 9000), (2100, 2100), (16000, 3000)]


def regions(photo, count=60):
    chance = random.Random(str(photo))
    for _ in range(count):
        across, down = (sorted(chance.sample(range(side + 1), 2)) for side in photo)
        yield across[0], down[0], across[1], down[1]


def shape(region):
    width, height = region[2] - region[0], region[3] - region[1]
    return max(width, height) / min(width, height)


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_part_shows_the_whole_region_and_has_the_proportions_that_the_model_draws(photo):
    for region, padding in itertools.product(regions(photo), (None, 0, 300)):
        try:
            frame = frame_of(photo, region, padding)
        except InvalidInput:
            assert shape(region) > 8
            continue
        width, height = frame.size
        assert conditioning_size(frame.drawn) == frame.drawn
        assert width / height == pytest.approx(frame.drawn[0] / frame.drawn[1])
        assert frame.left <= region[0] and frame.top <= region[1]
        assert frame.left + width >= region[2] - 1e-6 and frame.top + height >= region[3] - 1e-6
        left, top, right, bottom = frame.box_in(photo)
        assert 0 <= left < right <= photo[0] and 0 <= top < bottom <= photo[1]
        # It stands over the photo's edge only where the region takes up nearly all of a side.
        beyond = max(0, -frame.left), max(0, -frame.top)
        assert beyond[0] <= OVERHANG / 2 * photo[0] and beyond[1] <= OVERHANG / 2 * photo[1]


@pytest.mark.parametrize("height", [16, 200, 777, 1200, 2500])
def test_a_region_of_any_aspect_up_to_8_to_1_is_drawn_of_a_whole_picture_and_of_a_longer_one(height):
    """The sizes that the model draws have gaps between their proportions: 7.17:1 is followed by 8.45:1."""
    for step in range(201):
        width = int(height * 8 ** (step / 200))
        for longer in (0, height // 2, 3 * height):
            photo, region = (width + longer, height), (longer, 0, width + longer, height)
            for shown in (region, region[1::-1] + region[:1:-1]):
                own = photo if shown == region else photo[::-1]
                frame = frame_of(own, shown, None)
                over = [size / side - 1 for size, side in zip(frame.size, own, strict=True)]
                assert max(over) <= OVERHANG + 1e-6 and conditioning_size(frame.drawn) == frame.drawn


def test_any_canvas_up_to_8_to_1_is_drawn_whatever_of_it_is_new():
    for width in range(1000, 8001, 50):
        for region in ((0, 990, width, 1000), (0, 0, width, 1000), (0, 0, 10, 1000)):
            assert frame_of((width, 1000), region, 0)


def test_a_small_region_is_drawn_pixel_by_pixel_from_whole_pixels_on():
    frame = frame_of((4000, 3000), (1001, 1000, 1206, 1100), None)
    assert frame.scale == 1 and frame.left == int(frame.left) and frame.top == int(frame.top)
    assert frame.drawn[0] * frame.drawn[1] > 1_000_000


def test_padding_shows_more_around_the_region_and_never_less_than_it_is_asked_for():
    region = 1500, 1200, 2500, 1800
    little, much = (frame_of((6000, 4000), region, padding) for padding in (0, 900))
    assert much.scale > little.scale == 1
    assert much.left <= 600 and much.left + much.size[0] >= 3400


def test_at_the_end_of_a_strip_a_part_of_usual_proportions_is_drawn():
    frame = frame_of((9000, 200), (8900, 20, 9000, 180), None)
    left, top, right, bottom = frame.box_in((9000, 200))
    assert (top, right, bottom) == (0, 9000, 200) and left >= 8500


@pytest.mark.parametrize("label", ["mask_image", "subject_mask"])
def test_a_region_that_is_longer_than_any_picture_is_refused_with_both_sizes_by_the_field_that_names_it(label):
    with pytest.raises(
        InvalidInput, match=rf"^invalid_input: {label} must .* at most 8:1, not 9000x200 of an image of 9000x200"
    ):
        frame_of((9000, 200), (0, 0, 9000, 200), None, label)
