"""A picture that came to no numbers is an error, and never delivered as a flat colour."""

import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from qwen_worker.speed import attention

from ..conftest import run

JOB = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}


def spoil(folder, component, name):
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    tensors[name].fill_(math.nan)
    save_file(tensors, file)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of NaN to colours, before anybody can ask
@pytest.mark.parametrize(
    ("component", "name", "words"),
    [
        ("transformer", "proj_out.bias", "the last latents hold NaN or infinity"),
        ("vae", "decoder.conv_out.bias", "the VAE has decoded sound latents to NaN or infinity"),
    ],
)
def test_weights_that_draw_nan_are_an_error_and_the_second_time_in_a_row_ask_for_a_fresh_worker(
    tiny, tmp_path, cold_worker, component, name, words
):
    folder = shutil.copytree(tiny / "generate", tmp_path / "copy")
    spoil(folder, component, name)
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder))
    first, second = (run(worker, JOB, job_id) for job_id in ("one", "two"))
    assert first["error"] == f"internal: one: no picture came about, {words}"
    assert second["error"] == f"internal: two: no picture came about, {words}"
    assert not first.get("stopPod") and second["stopPod"]  # as the SDK asks the platform for a fresh worker


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("batch", [1, 2])
def test_a_speed_up_that_gives_nan_is_turned_off_and_the_job_drawn_once_more(cold_worker, monkeypatch, batch):
    rotate = attention.rotate
    monkeypatch.setattr(attention, "rotate", lambda *heads: rotate(*heads) * math.nan)
    worker = cold_worker(QWEN_SPEEDUPS="rotary", QWEN_BATCH=batch)
    facts = run(worker, JOB | {"num_images": batch})["output"]["metadata"]
    assert facts["backend"] == "qwen-image" and facts["stood_down"] == ["rotary"]
