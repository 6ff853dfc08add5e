"""What a visitor fills in becomes the input of a job that the worker's own parser accepts."""

import pytest
from PIL import Image

from qwen_play.errors import PlayError
from qwen_play.form import RATIOS, Form, Picture, base64_text, job_input
from qwen_worker.jobs.parsing import parse

from ..conftest import file_of

PROMPT = "a large red circle in the center, on a blue background"


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a picture.png"
    file.write_bytes(file_of(Image.new("RGB", (64, 64), "red")))
    return Picture(file)


def test_a_form_with_a_prompt_alone_leaves_the_rest_to_the_endpoint():
    assert job_input(Form(PROMPT), base64_text) == {"task": "generate", "prompt": PROMPT, "preview": True}


def test_a_full_form_is_a_job_that_the_worker_accepts(picture):
    form = Form(
        PROMPT, "grey", "balanced", "16:9", True, "12", "2.5", "7", "style.safetensors 0.8\nORG/NAME", (picture,),
        False, 0.5, picture,
    )  # fmt: skip
    fields = job_input(form, base64_text)
    job = parse(fields, "job")
    assert (job.task, job.num_inference_steps, job.guidance_scale, job.seed, job.strength) == ("edit", 12, 2.5, 7, 0.5)
    assert [(lora.path, lora.scale) for lora in job.loras] == [("style.safetensors", 0.8), ("ORG/NAME", 1.0)]
    assert fields["mask_image"] == fields["image"] == base64_text("", picture)


@pytest.mark.parametrize("ratio", ["", *RATIOS])
def test_a_small_picture_of_every_ratio_has_a_size_that_every_checkpoint_draws(ratio):
    job = parse(job_input(Form(PROMPT, ratio=ratio, small=True), base64_text), "job")
    across, down = (int(side) for side in (ratio or "1:1").split(":"))
    assert job.width % 32 == 0 == job.height % 32 and 200_000 < job.width * job.height < 320_000
    assert job.width / job.height == pytest.approx(across / down, rel=0.1)


def test_a_number_that_is_none_is_the_worker_s_to_refuse():
    fields = job_input(Form(PROMPT, steps="many", seed="nan"), base64_text)
    assert (fields["num_inference_steps"], fields["seed"]) == ("many", "nan")


def test_several_pictures_go_in_their_order_and_a_new_background_takes_no_mask(picture):
    fields = job_input(Form(PROMPT, pictures=(picture,) * 3, new_background=True, mask=picture), lambda name, _: name)
    assert fields["images"] == ["picture-1", "picture-2", "picture-3"]
    assert fields["task"] == "background_replacement" and "mask_image" not in fields


def test_a_fourth_picture_is_refused_with_both_numbers(picture):
    with pytest.raises(PlayError, match="at most 3, not 4"):
        job_input(Form(PROMPT, pictures=(picture,) * 4), base64_text)
