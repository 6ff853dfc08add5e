"""An edit of its input's own size: the input lies in the drawing at one scale, and comes back to where it was."""

import importlib

import numpy as np
import pytest
from PIL import Image, ImageChops

from qwen_worker.pictures.inset import Inset, inset_of, kept_sizes
from qwen_worker.pictures.sizes import CONDITIONING_AREA, CONDITIONING_MULTIPLE

PIPELINES = (
    "qwenimage.pipeline_qwenimage_edit",
    "qwenimage.pipeline_qwenimage_edit_plus",
    "qwenimage21.pipeline_qwenimage21",
)
ODD = (
    (1, 1),
    (8, 1),
    (37, 53),
    (770, 510),
    (1001, 333),
    (97, 761),
    (1920, 1080),
    (4000, 3000),
    (3001, 376),
    (500, 3999),
)


def inset(*size):
    return inset_of(size, CONDITIONING_AREA, CONDITIONING_MULTIPLE)


def waves(width, height):
    """A smooth picture, in which a pixel's value is its place."""
    down, right = np.indices((height, width))
    planes = [np.sin(right / 9), np.cos(down / 7), np.sin((right + down) / 13)]
    return Image.fromarray(np.stack([127 + 100 * plane for plane in planes], -1).astype(np.uint8))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_pipeline_resizes_what_is_handed_to_it(pipeline):
    calculated = importlib.import_module(f"diffusers.pipelines.{pipeline}").calculate_dimensions
    sizes = kept_sizes(CONDITIONING_AREA, CONDITIONING_MULTIPLE)
    assert len(sizes) > 60 and (1024, 1024) in sizes
    for width, height in sizes:
        assert calculated(1024 * 1024, width / height)[:2] == (width, height)


@pytest.mark.parametrize("size", ODD)
def test_the_input_fills_one_side_and_lies_in_the_middle_of_the_other(size):
    found = inset(*size)
    left, top, right, bottom = found.box
    assert min(left, top) == pytest.approx(0, abs=1e-9) and found.share > 0.92
    assert left + right == pytest.approx(found.drawn[0]) and top + bottom == pytest.approx(found.drawn[1])
    # One scale along both axes: nothing is stretched.
    assert (right - left) / size[0] == pytest.approx((bottom - top) / size[1])


@pytest.mark.parametrize("size", [(770, 510), (1001, 333), (97, 761)])
def test_what_the_pipeline_changes_nothing_of_comes_back_as_it_was(size):
    source, found = waves(*size), inset(*size)
    placed = found.place(source)
    assert placed.size == found.drawn
    back = found.take_out(placed, size)
    assert back.size == size
    difference = np.asarray(ImageChops.difference(back, source))
    assert difference.mean() < 0.5 and difference[2:-2, 2:-2].max() < 12


def test_beyond_the_input_its_edge_is_repeated():
    source = Image.new("RGB", (800, 100), "red")
    source.paste("blue", (0, 0, 400, 100))
    found = Inset((800, 100), (2976, 352))
    placed = found.place(source)
    assert found.box[0] == 80 and placed.getpixel((2, 176)) == (0, 0, 255) and placed.getpixel((2970, 5)) == (255, 0, 0)


def test_a_mask_stays_black_and_white():
    mask = Image.new("L", (771, 509), 0)
    mask.paste(255, (100, 0, 300, 509))
    placed = inset(771, 509).place(mask, Image.Resampling.NEAREST)
    assert set(placed.tobytes()) == {0, 255} and placed.getpixel((placed.width // 4, 0)) == 255
