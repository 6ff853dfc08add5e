"""`background_replacement` with a mask of the subject: the subject's own pixels come back, and its edge is soft."""

import numpy as np
import pytest
from PIL import Image, ImageChops

from qwen_tiny.world import judge, scenes
from qwen_worker.pictures.matte import around_subject

from ..conftest import as_text, file_of, posted, run, warnings_of

SCENE = scenes.Scene("red", "circle", "blue", "large", "center", radius=0.23)
REPLACE = {"task": "background_replacement", "prompt": "a plain green background", "keep_subject": "exact"}
FEW = {"num_inference_steps": 1, "guidance_scale": 1, "draw_size": "asked"}  # for what does not depend on the drawing


def photo_of(width, height):
    """A scene, and how much of each pixel is the subject's, as a mask."""
    coverage = scenes.coverage(SCENE, width, height)
    return Image.fromarray(scenes.draw(SCENE, width, height)), Image.fromarray((coverage * 255).astype(np.uint8))


def differing(drawn, photo, mask):
    """How many pixels differ where the mask is white."""
    away = np.abs(np.asarray(drawn, int) - np.asarray(photo, int)).max(axis=2)
    return int((away[np.asarray(mask) == 255] > 0).sum())


def test_the_background_is_another_and_the_subject_s_pixels_are_its_own(draw):
    photo, matte = photo_of(512, 512)
    drawn, facts = draw(**REPLACE, image=as_text(photo), subject_mask=as_text(matte), num_inference_steps=4, seed=3)
    reading = judge.read(drawn)
    assert (reading.background, reading.colour, reading.shape) == ("green", "red", "circle")
    assert differing(drawn, photo, matte) == 0 and drawn.size == photo.size and not warnings_of(facts)


def test_a_cut_out_and_a_mask_without_greys_say_the_same(draw):
    photo = Image.effect_noise((256, 256), 60).convert("RGB")
    _, matte = photo_of(256, 256)
    hard = matte.point(lambda value: 255 * (value > 127))
    cut_out = photo.copy()
    cut_out.putalpha(hard)
    for mask in (hard, cut_out):
        drawn, _ = draw(**REPLACE, **FEW, image=as_text(photo), subject_mask=as_text(mask))
        assert differing(drawn, photo, hard) == 0 and differing(drawn, photo, ImageChops.invert(hard)) > 30_000


def test_the_edge_is_soft_on_the_background_s_side():
    hard = Image.new("L", (64, 64))
    hard.paste(255, (16, 16, 48, 48))
    row = np.asarray(around_subject(file_of(hard), "subject_mask", hard.size, print))[32].astype(int)
    assert (row[16:48] == 0).all() and (row[:12] == 255).all()
    assert 0 < row[15] < row[14] <= 255 and 0 < row[48] < row[49] <= 255


def test_greys_of_a_matte_are_kept_as_they_are():
    matte = Image.linear_gradient("L")
    mask = around_subject(file_of(matte), "subject_mask", matte.size, print)
    assert (np.asarray(ImageChops.invert(mask))[8:248] == np.asarray(matte)[8:248]).all()


def test_a_photo_larger_than_a_job_may_ask_for_keeps_its_size_and_its_subject(draw):
    photo, matte = photo_of(2304, 2304)
    drawn, facts = draw(**REPLACE, image=as_text(photo), subject_mask=as_text(matte), **{**FEW, "draw_size": "input"})
    assert drawn.size == photo.size and facts["drawn_dimensions"] == "1024x1024"
    assert differing(drawn, photo, matte) == 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {},
            "keep_subject 'exact' needs subject_mask, white where the subject is: the worker does not find it",
        ),
        ({"subject_mask": "aGk=", "images": ["aGk="] * 2}, "subject_mask works on one image, not 2"),
        ({"keep_subject": "nearly"}, "keep_subject must be 'exact', not \"nearly\""),
        ({"task": "edit", "subject_mask": "aGk="}, '"keep_subject" is not a field of edit'),
    ],
)
def test_a_subject_that_is_not_known_is_refused(cold_worker, fields, sentence):
    image = {} if "images" in fields else {"image": "aGk="}
    error = run(cold_worker(), {**REPLACE, **image, **fields})["error"]
    assert error.startswith(f"invalid_input: {sentence}")


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (Image.new("L", (64, 64), 0), "must be white where the subject is, and has no white pixel"),
        (Image.new("L", (64, 64), 255), "must be black where the background is, and has no black pixel"),
        (Image.new("RGBA", (64, 64)), "must be opaque where the subject is, and has no opaque pixel"),
        (Image.new("L", (64, 32), 255), "must have the size of the image, 64x64, or its aspect, not 64x32"),
    ],
)
def test_a_mask_of_no_subject_is_refused_before_a_model_is_loaded(cold_worker, mask, sentence):
    worker = cold_worker()
    error = posted(worker, **REPLACE, image=as_text(Image.new("RGB", (64, 64))), subject_mask=as_text(mask))["error"]
    assert error == f"invalid_input: subject_mask {sentence}" and worker.pipelines.loaded == {}
