"""What a named size is in pixels: by the table of the checkpoint's makers, on its grid, within bounds."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints import classes, search
from qwen_worker.drawing.batching import are_alike
from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.named_sizes import Grid, brought_warning, grid_of, named_size, with_size
from qwen_worker.jobs.parsing import parse

IMAGE, IMAGE_21, TINY = Grid(), Grid(32, "2K", 2752, True, True), Grid(32, None)


def asked(**fields):
    return parse({"prompt": "a", **fields}, "job")


def size_of(grid, source_ratio=1.0, **fields):
    request = asked(**fields)
    return named_size(request, grid_of(request, grid), source_ratio)


@pytest.mark.parametrize(("hub_id", "grid"), [(name, IMAGE_21 if "2.1" in name else IMAGE)
                                              for name in classes.RELEASED])  # fmt: skip
def test_each_released_checkpoint_has_its_makers_table_and_its_own_grid(hub_id, grid):
    assert checkpoints.released(hub_id).grid == grid


def test_of_a_vae_that_nobody_released_no_table_is_known(tiny):
    assert search.find(str(tiny / "generate"), ()).grid == TINY


@pytest.mark.parametrize(
    ("ratio", "image", "image_21", "tiny"),
    [
        ("1:1", (1328, 1328), (2048, 2048), (1024, 1024)),
        ("16:9", (1664, 928), (2752, 1536), (1376, 768)),
        ("9:16", (928, 1664), (1536, 2752), (768, 1376)),
        ("4:3", (1472, 1104), (2400, 1792), (1184, 896)),
        ("3:4", (1104, 1472), (1792, 2400), (896, 1184)),
        ("3:2", (1584, 1056), (2528, 1696), (1248, 832)),
        ("2:3", (1056, 1584), (1696, 2528), (832, 1248)),
        ("32:18", (1664, 928), (2752, 1536), (1376, 768)),
        ("1.78:1", (1664, 928), (2752, 1536), (1376, 768)),
        # In no table: as many pixels as the square, as far as no side is too long.
        ("5:4", (1488, 1184), (2304, 1824), (1152, 928)),
        ("21:9", (2032, 864), (2752, 1184), (1568, 672)),
        ("8:1", (2048, 256), (2752, 352), (2048, 256)),
        ("1:8", (256, 2048), (352, 2752), (256, 2048)),
    ],
)
def test_an_aspect_ratio_is_the_size_that_the_checkpoint_draws_best(ratio, image, image_21, tiny):
    assert [size_of(grid, aspect_ratio=ratio) for grid in (IMAGE, IMAGE_21, TINY)] == [image, image_21, tiny]


@pytest.mark.parametrize(
    ("fields", "grid", "size", "told"),
    [
        ({"size": "1K"}, IMAGE, (1328, 1328), ""),
        ({"size": "2K"}, IMAGE, (2048, 2048), ""),
        ({"size": "1K"}, IMAGE_21, (1344, 1344), "size 1K, 1328x1328, is brought to 1344x1344: width and height are"),
        ({"size": "2K", "aspect_ratio": "16:9"}, IMAGE_21, (2752, 1536), ""),
        ({"size": "2K", "aspect_ratio": "16:9"}, IMAGE, (2048, 1152), "size 2K, 2752x1536, is brought to 2048x1152:"),
        ({"resolution": "1k", "aspect_ratio": "3:4"}, IMAGE, (1104, 1472), ""),
        ({"size": "1472*1140"}, IMAGE, (1472, 1136), "size 1472x1140 is brought to 1472x1136: width and height are "
                                                     "multiples of 16, at most 2048"),  # RunPod's own client
        ({"size": "1472*1140"}, IMAGE_21, (1472, 1152), "size 1472x1140 is brought to 1472x1152: width and height are "
                                                        "multiples of 32, at most 2752"),
        ({"size": "1472x1104"}, IMAGE_21, (1472, 1120), "size 1472x1104 is brought to 1472x1120"),
        ({"size": "1920x1080"}, IMAGE, (1920, 1088), "size 1920x1080 is brought to 1920x1088"),
        ({"size": "1664x928", "aspect_ratio": "16:9"}, IMAGE_21, (1664, 928), ""),
        ({"image_size": "landscape_4_3"}, IMAGE, (1024, 768), ""),
        ({"image_size": {"width": "1280", "height": 725.0}}, IMAGE, (1280, 720), "size 1280x725 is brought to 1280x7"),
        ({"image_size": "16:9"}, IMAGE, (1664, 928), ""),
        ({"aspect_ratio": "8:1"}, IMAGE, (2048, 256), "aspect_ratio 8:1 is brought to 2048x256: a side has at"),
        ({"aspect_ratio": "auto"}, IMAGE, None, ""),
        ({"aspect_ratio": "custom", "width": 512, "height": 768}, IMAGE, None, ""),
        ({"width": 512, "height": 768}, IMAGE, None, ""),
        # Of an edit: of its drawing's size, or with the proportions of its picture, here 4:3.
        ({"image": "aGk=", "aspect_ratio": "16:9"}, IMAGE_21, (1376, 768), ""),
        ({"image": "aGk=", "size": "1K"}, IMAGE_21, (1472, 1104), ""),
        ({"image": "aGk=", "size": "2K"}, IMAGE_21, (2400, 1792), ""),
        ({"image": "aGk=", "size": "2K"}, IMAGE, (2048, 1536), "size 2K is brought to 2048x1536: a side has"),
        ({"image": "aGk=", "size": "1472x1140"}, IMAGE_21, (1472, 1136), "size 1472x1140 is brought to 1472x1136"),
        ({"image": "aGk=", "size": "1472x1140", "draw_size": "asked"}, IMAGE_21, (1472, 1152), "size 1472x1140 is"),
        ({"image": "aGk=", "aspect_ratio": "match_input_image"}, IMAGE, None, ""),
    ],
)  # fmt: skip
def test_a_named_size_lies_on_the_checkpoint_s_grid_and_what_it_is_brought_to_is_told(fields, grid, size, told):
    request = asked(**fields)
    assert size_of(grid, 4 / 3 if "image" in fields else 1.0, **fields) == size
    warning = size and brought_warning(request, grid_of(request, grid), size)
    assert (warning or "").startswith(told) and bool(warning) is bool(told)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(1 / 8, 8), st.sampled_from([IMAGE, IMAGE_21, TINY]), st.sampled_from([{}, {"size": "1K"}, {"size": "2K"}])
)
def test_every_ratio_has_a_size_within_the_limits(ratio, grid, more):
    width, height = size_of(grid, aspect_ratio=f"{ratio:.4f}:1", **more)
    assert all(256 <= side <= grid.longest and side % grid.multiple == 0 for side in (width, height))
    assert 0.88 < width / height / ratio < 1.13  # 16 pixels of the short side are 6 %, and 32 of it 12 %
    assert width * height < 2560 * 1696


def test_jobs_that_name_one_size_in_two_ways_are_alike_once_it_is_decided():
    requests = [asked(seed=1, **fields) for fields in ({"aspect_ratio": "16:9"}, {"width": 1664, "height": 928})]
    assert not are_alike(*requests)
    assert are_alike(*[with_size(request, (1664, 928)) for request in requests])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"aspect_ratio": "1:900"}, 'aspect_ratio must be from 1:8 to 8:1, not "1:900"'),
        ({"aspect_ratio": "9:1"}, 'aspect_ratio must be from 1:8 to 8:1, not "9:1"'),
        ({"aspect_ratio": "0:1"}, "aspect_ratio must be from 1:8 to 8:1"),
        ({"aspect_ratio": "1:0.0"}, "aspect_ratio must be from 1:8 to 8:1"),
        ({"aspect_ratio": "99999:1"}, "aspect_ratio must be WIDTHxHEIGHT in pixels, WIDTH:HEIGHT as an aspect ratio"),
        ({"aspect_ratio": "wide"}, "aspect_ratio must be WIDTHxHEIGHT in pixels"),
        ({"aspect_ratio": ["1:1"]}, "or 'auto', not a list of 1"),
        ({"aspect_ratio": "٤:3"}, "aspect_ratio must be WIDTHxHEIGHT"),
        ({"aspect_ratio": "\ud800:1"}, r'not "\ud800:1"'),
        ({"aspect_ratio": {"width": 512, "height": 512}}, "or 'auto', not an object"),
        ({"image_size": ["square"]}, "image_size must be one of square, .* not a list of 1"),
        ({"image_size": "4K"}, 'image_size must be one of square, .* not "4K"'),
        ({"image_size": {"width": 512, "height": 512, "depth": 3}}, "an object of width and height alone"),
        ({"size": "100x512"}, r"width (sent as size) must be a whole number from 256 to 2752, not 100"),
        ({"size": "512x2753"}, r"height (sent as size) must be a whole number from 256 to 2752, not 2753"),
        ({"aspect_ratio": "1:1", "width": 512, "height": 768}, "aspect_ratio (1:1) and width (512) and height (768)"),
        ({"aspect_ratio": "1:1", "size": "512x768"}, "aspect_ratio (1:1) and size (512x768) differ: send one of them"),
        ({"aspect_ratio": "1:1", "image_size": "portrait_4_3"}, "aspect_ratio (1:1) and image_size (768x1024) differ"),
        ({"aspect_ratio": "1:1", "size": "16:9"}, 'as aspect_ratio ("1:1") and as size ("16:9"), and the two differ'),
        ({"aspect_ratio": "1:1", "width": 512}, "aspect_ratio (1:1) and width (512) leave the size open: send width"),
        ({"size": "2K", "width": 1024, "height": 1024}, "size (2K) and width (1024) and height (1024) differ: send o"),
        ({"size": "1K", "resolution": "2K"}, 'size is given twice, as size ("1K") and as resolution ("2K"), and the'),
        ({"size": "512x512", "height": 528}, "height is given twice, as size (512) and as height (528), and the two"),
        ({"aspect_ratio": "match_input_image"}, "aspect_ratio (match_input_image) needs an input picture, and ther"),
        ({"aspect_ratio": "match_input_image", "image": "aGk=", "size": "512x512"}, "and size (512x512) may differ:"),
        ({"aspect_ratio": "match_input_image", "image": "aGk=", "width": 512, "height": 512}, "and height (512) may"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_or_is_given_twice_is_refused_with_both(fields, words):
    with pytest.raises(InvalidInput) as caught:
        asked(**fields)
    parts = [re.escape(part) for part in words.split(".*")]
    assert re.search(".*".join(parts), str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"aspect_ratio": "2:3", "width": 512, "height": 768},
        {"aspect_ratio": "4:3", "size": "1472*1140"},  # 3 % apart
        {"size": "2K", "width": 2048, "height": 2048},
        {"size": "1024x1024", "image_size": "square_hd", "width": 1024, "height": "1024"},
        {"aspect_ratio": "16:9", "image_size": "16:9"},
    ],
)
def test_a_size_that_is_given_twice_and_agrees_is_fine_and_width_and_height_are_used(fields):
    request = asked(**fields)
    if {"width", "height"} <= set(fields):
        assert (request.width, request.height) == (int(fields["width"]), int(fields["height"]))
        assert size_of(IMAGE, **fields) is None and request.size is request.aspect_ratio is None
    else:
        assert size_of(IMAGE, **fields)


@pytest.mark.parametrize("picture", [{}, {"image": "aGk="}])
def test_a_side_beside_a_size_that_agrees_is_that_size(picture):
    request = parse({"prompt": "a", **picture, "size": "1024x768", "width": 1024}, "job")
    assert named_size(request, grid_of(request, Grid())) == (1024, 768)
