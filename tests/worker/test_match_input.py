"""Whole jobs that keep the photo: the input's own size, place and colours."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.matching import framing
from benchmarks.measure.altered_photos import photo
from qwen_tiny.world import scenes

from ..conftest import as_text, only_proved, picture_of, run, warnings_of

SCENE = scenes.Scene("red", "circle", "blue", "large", "left", x=0.36, y=0.54, radius=0.23)
# One step of twenty: the picture goes through the VAE, and is hardly changed.
UNCHANGED = {"prompt": "make the background blue", "num_inference_steps": 20, "strength": 0.05, "seed": 3}
PROMPT = {"prompt": "make the background green", "num_inference_steps": 1, "guidance_scale": 1, "seed": 3}


def scene(width, height):
    return Image.fromarray(scenes.draw(SCENE, width, height))


def middle(picture):
    """(x, y) in pixels of the middle of what is red."""
    towards = np.array(scenes.RGB["red"], float) - scenes.RGB["blue"]
    red = ((np.asarray(picture, float) - scenes.RGB["blue"]) @ towards / (towards @ towards)).clip(0, 1)
    red[red < 0.15] = 0
    y, x = np.indices(red.shape) + 0.5
    return np.array([(red * x).sum(), (red * y).sum()]) / red.sum()


def test_the_reply_has_the_input_s_own_size_and_its_content_lies_where_it_was(draw):
    source = scene(771, 409)
    picture, metadata = draw(image=as_text(source), compare_input=True, size="match_input", **UNCHANGED)
    assert picture.size == source.size and metadata["dimensions"] == "771x409"
    assert metadata["drawn_dimensions"] == "1408x736" and warnings_of(metadata) == []
    assert np.abs(middle(picture.convert("RGB")) - middle(source)).max() < 0.5
    (found,) = metadata["registration"]
    assert found["confidence"] > 0.8 and max(abs(found["shift_x"]), abs(found["shift_y"])) < 0.5
    assert abs(found["scale"] - 1) < 0.001 and "aligned" not in found
    (drift,) = metadata["colour_drift"]
    assert max(map(abs, drift["mean"])) < 3 and "undone" not in drift


def test_outside_a_mask_every_pixel_of_an_odd_size_is_the_input_s_own(draw):
    source = scene(771, 409)
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (500, 100, 700, 300))
    picture, metadata = draw(image=as_text(source), mask_image=as_text(mask), size="match_input", **PROMPT)
    differs = (np.asarray(picture.convert("RGB")) != np.asarray(source)).any(-1)
    assert picture.size == source.size and metadata["width"] == 771
    assert not {"registration", "colour_drift"} & metadata.keys()  # it did not ask
    assert not differs[np.asarray(mask) == 0].any() and differs[np.asarray(mask) == 255].any()


def test_an_edit_is_brought_back_to_its_input_s_place_and_colours(draw):
    fields = {"image": as_text(scene(640, 480)), "align": True, "keep_colours": True}
    metadata = draw(**fields, **UNCHANGED)[1]
    assert metadata["registration"][0]["aligned"] is True and metadata["colour_drift"][0]["undone"] is True


def test_an_edit_that_shows_another_picture_is_left_as_it_was_drawn(draw):
    """The tiny checkpoint draws shapes: of a photo there is nothing in its edits."""
    fields = {"image": as_text(Image.fromarray(photo(np.random.default_rng(1), 640, 480))), **PROMPT}
    plain, _ = draw(**fields)
    left, metadata = draw(**fields, align=True, keep_colours=True)
    (found,) = metadata["registration"]
    assert found["confidence"] < 0.2 and found["aligned"] is False and left.tobytes() == plain.tobytes()
    assert metadata["colour_drift"] == [{"undone": False}]
    assert [warning.split(":")[0] for warning in warnings_of(metadata)] == ["align", "keep_colours"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "generate", "image": None}, "size (match_input) is for edits, and generate is none"),
        ({"width": 512, "height": 512}, "size (match_input) and width (512) and height (512) may differ"),
        ({"aspect_ratio": "16:9"}, "size (match_input) and aspect_ratio (16:9) may differ: send one of them"),
        ({"draw_size": "asked"}, "size (match_input) has no other drawing than the model's own"),
    ],
)
def test_the_input_s_size_beside_another_one_is_refused(ask, fields, words):
    body = ask(**{"image": as_text(scene(64, 48)), "prompt": "a", "size": "match_input", **fields})
    assert body["error"].startswith(f"invalid_input: {words}")


def test_without_opencv_what_needs_it_is_refused_by_name(ask, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "cv2" else find(name, *more))
    error = ask(image=as_text(scene(64, 48)), align=True, **PROMPT)["error"]
    assert error.startswith("invalid_input: align needs the package opencv-python-headless, which this worker does not")


def test_a_stand_in_of_the_input_s_size_has_it_and_is_not_compared(cold_worker):
    fields = {"image": as_text(scene(301, 211)), "prompt": "blur", "size": "match_input", "align": True}
    output = run(cold_worker(QWEN_FALLBACK="force"), fields)["output"]
    assert picture_of(output["image"]).size == (301, 211) and "registration" not in output["metadata"]


def test_a_grid_keeps_its_frame_through_the_vae():
    (row,) = framing(1, seed=5)  # one size: none is left for the worker's own area
    assert row["within half a pixel"] == 100 and row["worst"] < 0.5


@only_proved
def test_of_two_hundred_odd_sizes_each_keeps_its_frame():
    rows = list(framing(200, seed=1))
    assert [(row["cases"], row["within half a pixel"]) for row in rows] == [(200, 100), (20, 100)]
