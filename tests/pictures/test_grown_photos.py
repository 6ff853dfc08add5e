"""Canvases that grow and subjects that are kept, where the photo is larger than what the model draws."""

import numpy as np
import pytest
from PIL import Image

from qwen_worker.jobs.job import Job
from qwen_worker.jobs.named_sizes import Grid
from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.canvas import canvas_of, finish_drawing
from qwen_worker.pictures.inputs import open_images

from ..conftest import as_text
from ..support import profiles


def finished(photo, icc_profile=None, **fields):
    """The result of a red drawing, the canvas that it was drawn on, and the job."""
    image = as_text(photo, icc_profile=icc_profile) if icc_profile else as_text(photo)
    job = Job("job", parse({"prompt": "a", "image": image, **fields}, "job"))
    inputs = open_images(job.request, 5, job.warn)
    canvas = canvas_of(job, inputs, Grid(32))
    drawn = canvas.finish(Image.new("RGB", canvas.size, "red"))
    return (canvas.stitch.whole(drawn) if canvas.stitch else drawn), canvas, job


@pytest.mark.parametrize("task", ["edit", "generate"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_large_photo_grows_in_its_own_size_and_only_the_region_around_what_is_new_is_drawn(task, mode):
    photo = Image.effect_noise((1800, 1200), 60).convert(mode)
    result, canvas, job = finished(photo, task=task, expand={"right": 300})
    assert result.size == (2100, 1200) and canvas.stitch.frame.left > 500
    before = photo.convert(result.mode)
    assert np.array_equal(np.asarray(result)[:, :1800], np.asarray(before))
    assert (np.asarray(result.convert("RGB"))[:, 1830:] == (255, 0, 0)).all()
    assert job.request.expand.right == 300 and len(canvas.sources) == (task == "edit") and canvas.start


def test_a_large_photo_with_a_ratio_grows_too_and_the_check_sees_what_was_sent():
    photo = Image.new("RGB", (1600, 1200), "green")
    job = Job("job", parse({"prompt": "a", "image": as_text(photo), "aspect_ratio": "2:1", "fit": "expand"}, "job"))
    inputs = open_images(job.request, 5, job.warn)
    assert [one.size for one in inputs.to_check] == [(1024, 768)] and inputs.stitch.photo.size == (2400, 1200)
    canvas = canvas_of(job, inputs, Grid(32))
    assert canvas.result_size == (2400, 1200) and job.request.aspect_ratio is None and not job.warnings


@pytest.mark.parametrize("task", ["edit", "generate"])
@pytest.mark.parametrize("is_wide", [True, False])
def test_a_canvas_between_two_sizes_that_are_drawn_keeps_the_photo_and_its_edge_is_drawn_too(task, is_wide):
    """3.35:1 lies between 3.11:1 and 3.58:1: the part stands over the canvas, and is cut off there."""
    photo = Image.effect_noise((1500, 1000) if is_wide else (1000, 1500), 60).convert("RGB")
    sides = ("left", "right") if is_wide else ("top", "bottom")
    result, canvas, _ = finished(photo, task=task, expand=dict.fromkeys(sides, 925))
    left, top, right, bottom = (925, 0, 2425, 1000) if is_wide else (0, 925, 1000, 2425)
    whole, old = np.asarray(result), np.asarray(photo)
    assert np.array_equal(whole[top:bottom, left:right], old)
    new = np.ones(whole.shape[:2], bool)
    new[max(0, top - 16) : bottom + 16, max(0, left - 16) : right + 16] = False
    assert (whole[new] == (255, 0, 0)).all() and max(canvas.stitch.frame.size) > 3350
    # The model draws to its own edge: what was made up beyond the canvas is nothing that it has to continue.
    mask = np.asarray(canvas.mask) > 0
    first, last = (mask[:, 0], mask[:, -1]) if is_wide else (mask[0], mask[-1])
    assert first.all() and last.all()


def test_a_subject_of_a_large_photo_keeps_its_pixels_and_its_edge_its_greys():
    photo = Image.effect_noise((1800, 1200), 60).convert("RGB")
    matte = Image.new("L", photo.size)
    matte.paste(255, (600, 300, 1200, 900))
    matte.paste(128, (1200, 300, 1210, 900))
    result, canvas, _ = finished(photo, task="background_replacement", subject_mask=as_text(matte))
    before, after = np.asarray(photo, int), np.asarray(result, int)
    assert result.size == photo.size and (after[300:900, 600:1200] == before[300:900, 600:1200]).all()
    assert (after[:200] == (255, 0, 0)).all()
    assert np.abs(after[600, 1205] - (before[600, 1205] + np.array((255, 0, 0))) / 2).max() <= 2


@pytest.mark.parametrize("size", [(300, 200), (1600, 1200)])
@pytest.mark.parametrize("fields", ["mask", "expand", "subject"])
@pytest.mark.parametrize("profile", [None, profiles.DISPLAY_P3])
def test_what_is_kept_of_a_transparent_picture_has_its_transparency_whether_it_is_small_or_large(size, fields, profile):
    width, height = size
    picture = Image.effect_noise(size, 60).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(size))
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, width // 2, height // 2))
    job_fields = {
        "mask": {"mask_image": as_text(mask)},
        "expand": {"expand": {"left": 40}},
        "subject": {"task": "background_replacement", "subject_mask": as_text(mask)},
    }[fields]
    result, canvas, job = finished(picture, **job_fields, icc_profile=profile)
    before, after = np.asarray(picture), np.asarray(result)[:, -width:]
    kept = {"mask": np.asarray(mask) == 0, "expand": np.ones((height, width), bool), "subject": np.asarray(mask) == 255}
    assert result.mode == "RGBA" and (after[kept[fields]] == before[kept[fields]]).all()
    far = np.asarray(result)[{"mask": (5, 5), "expand": (5, 5), "subject": (-5, -5)}[fields]]
    assert far[3] == 255 and result.info.get("icc_profile") == profile
    drawn = Image.new("RGB", canvas.size, "red")
    assert (
        canvas.report(job.request, [finish_drawing(drawn, job.request, canvas, job.warn)])["background"]
        == "transparent"
    )


def test_a_small_grey_picture_with_a_profile_and_transparency_comes_back_in_srgb_with_its_alpha_and_says_so():
    picture = Image.effect_noise((300, 200), 60).convert("LA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    result, _, job = finished(picture, icc_profile=profiles.grey(), expand={"left": 40})
    assert result.mode == "RGBA" and "icc_profile" not in result.info
    assert result.getchannel("A").crop((40, 0, 340, 200)).tobytes() == picture.getchannel("A").tobytes()
    assert len(job.warnings) == 1 and job.warnings[0].endswith("and the result is sRGB")


@pytest.mark.parametrize("size", [(300, 200), (1600, 1200)])
def test_a_job_that_wants_jpeg_or_has_an_opaque_picture_is_not_told_of_transparency(size):
    for mode, more in (("RGBA", {"output_format": "jpeg"}), ("RGB", {})):
        picture = Image.new(mode, size, (9, 9, 9, 40)[: len(mode)])
        _, canvas, job = finished(picture, expand={"left": 40}, **more)
        drawn = finish_drawing(Image.new("RGB", canvas.size, "red"), job.request, canvas, job.warn)
        assert "background" not in canvas.report(job.request, [drawn])


@pytest.mark.parametrize("size", [(300, 200), (1600, 1200)])
@pytest.mark.parametrize("background", ["auto", "opaque"])
def test_of_a_model_that_draws_transparency_the_job_decides_on_the_drawing_and_not_on_what_is_kept(size, background):
    picture = Image.new("RGBA", size, (9, 9, 9, 254))  # hardly see-through, and kept all the same
    job = Job(
        "job",
        parse({"prompt": "a", "image": as_text(picture), "expand": {"left": 40}, "background": background}, "job"),
    )
    canvas = canvas_of(job, open_images(job.request, 5, job.warn), Grid(32, draws_alpha=True))
    part = finish_drawing(Image.new("RGBA", canvas.size, (255, 0, 0, 0)), job.request, canvas, job.warn)
    whole = np.asarray(canvas.stitch.whole(part) if canvas.stitch else part)
    assert (whole[:, 40:] == (9, 9, 9, 254)).all() and whole[5, 5, 3] == (0 if background == "auto" else 255)


def test_a_small_picture_is_drawn_whole():
    result, canvas, _ = finished(Image.effect_noise((300, 200), 60).convert("RGB"), expand=20)
    assert canvas.stitch is None and result.size == (340, 240)
