"""How an edit lies on its input is measured where it is unchanged, and is not known where too little is."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.matching import HALF, SIZES, alignment
from benchmarks.measure.altered_photos import altered
from qwen_worker.pictures.registration import Place, register, searched, undo

from ..conftest import only_proved


def disc(x, y, radius, ground="blue", side=512):
    picture = Image.new("RGB", (4 * side, 4 * side), ground)
    box = [4 * (x - radius), 4 * (y - radius), 4 * (x + radius), 4 * (y + radius)]
    ImageDraw.Draw(picture).ellipse(box, fill="red")
    return picture.resize((side, side), Image.Resampling.BOX)


@pytest.mark.parametrize("number", range(4))
def test_a_shift_and_a_scale_are_found_to_half_a_pixel_though_part_of_the_picture_is_edited(number):
    case = altered(np.random.default_rng(number), 640, 512)
    found = register(case.source, case.edit)
    assert found.is_sure and found.place.distance(Place(*case.shift, case.scale), (640, 512)) < HALF


def test_the_search_leaves_its_planes_as_they_are():
    """OpenCV would multiply the one by its window once for each scale, until nothing is left of it but its middle."""
    one, other = (np.random.default_rng(number).normal(size=(192, 256)).astype(np.float32) for number in (0, 1))
    before = one.copy(), other.copy()
    searched(one, other)
    assert np.array_equal(one, before[0]) and np.array_equal(other, before[1])


def test_an_edit_that_is_moved_back_lies_on_its_input():
    case = altered(np.random.default_rng(9), 640, 512)
    source, edit = (np.asarray(picture, float) for picture in (case.source, case.edit))
    found = register(case.source, case.edit)
    moved = np.asarray(undo(case.edit, found.place), float)
    inner = case.kept.copy()
    inner[:40] = inner[-40:] = inner[:, :40] = inner[:, -40:] = False
    # The edited part has moved too: what lies within its reach is left out.
    inner = np.asarray(Image.fromarray(inner).resize((32, 26)).resize((640, 512))) & inner
    assert np.abs(moved - source)[inner].mean() < 0.4 * np.abs(edit - source)[inner].mean()
    assert register(case.source, Image.fromarray(moved.astype(np.uint8))).place.distance(Place(), (640, 512)) < HALF


@pytest.mark.parametrize("number", range(3))
def test_pictures_that_have_nothing_in_common_are_not_taken_for_one_another(number):
    case = altered(np.random.default_rng(number), 640, 512, related=False)
    assert not register(case.source, case.edit).is_sure


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (disc(200, 280, 110), Place()),
        (disc(204, 277, 110), Place(4, -3)),
        (disc(200 - 56 * 0.02, 280 + 24 * 0.02, 110 * 1.02), Place(scale=1.02)),
        (disc(203, 280, 110, ground="navy"), Place(3, 0)),
    ],
)
def test_one_shape_on_a_flat_ground_is_enough_even_of_the_same_brightness(edit, place):
    found = register(disc(200, 280, 110), edit)
    assert found.is_sure and found.place.distance(place, (512, 512)) < HALF


@pytest.mark.parametrize(
    "edit", [Image.new("RGB", (512, 512), "white"), disc(360, 200, 60), disc(400, 400, 110, ground="white")]
)
def test_nothing_is_known_where_the_shape_is_another_or_gone(edit):
    assert not register(disc(150, 280, 110), edit).is_sure


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (37, 53), (31, 32), (2000, 40)])
def test_a_picture_of_any_size_is_measured_or_not_known(size):
    picture = altered(np.random.default_rng(0), 256, 256).source.resize(size)
    assert register(picture, picture).place.distance(Place(), size) < HALF


def test_two_flat_pictures_say_nothing():
    flat = Image.new("RGB", (256, 256), "grey")
    assert register(flat, flat).confidence == 0


@only_proved
def test_of_two_hundred_edits_nearly_all_are_found_and_none_is_moved_that_is_another_picture():
    found, unrelated = alignment(200, seed=1)
    assert found["cases"] == 200 and found["within half a pixel"] >= 95
    assert unrelated["moved"] == 0 and len(SIZES) > 1
