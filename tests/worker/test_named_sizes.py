"""Whole jobs whose size is a name: drawn, delivered, planned and refused at the size that the checkpoint gives it."""

import asyncio
import dataclasses

import pytest
from runpod.serverless.modules.rp_job import run_job

from qwen_worker.jobs.deadline import Kind

from ..conftest import as_text, picture_of, run, warnings_of

DRAWING = {"prompt": "a red circle", "num_inference_steps": 1, "guidance_scale": 1, "seed": 1}


@pytest.mark.parametrize(
    ("fields", "size", "told"),
    [
        ({"aspect_ratio": "4:3"}, (1184, 896), None),
        ({"size": "300x256"}, (288, 256), "size 300x256 is brought to 288x256: width and height are multiples of 32"),
        ({"image_size": {"width": 272, "height": 256}}, (288, 256), "size 272x256 is brought to 288x256"),
        ({"size": "auto", "width": 256, "height": 256, "aspect_ratio": "1:1"}, (256, 256), None),
    ],
)
def test_a_picture_has_the_size_that_its_name_is_on_this_checkpoint(ask, fields, size, told):
    output = ask(**DRAWING, **fields)["output"]
    assert picture_of(output["image"]).size == size
    assert (output["metadata"]["width"], output["metadata"]["height"]) == size
    warnings = warnings_of(output["metadata"])
    assert len(warnings) == bool(told) and all(warning.startswith(told) for warning in warnings)


def test_plain_sides_off_the_checkpoint_s_grid_are_refused_with_their_neighbours(ask):
    assert ask(**DRAWING, width=272, height=256)["error"] == (
        "invalid_input: width must be a multiple of 32 for this checkpoint, not 272; the nearest are 256 and 288"
    )


@pytest.mark.parametrize(
    ("fields", "size", "told"),
    [
        ({"aspect_ratio": "9:16"}, (768, 1376), "768x1376 has other proportions than the input picture"),
        ({"aspect_ratio": "match_input_image", "size": "1K"}, (1328, 1328), None),
        ({"size": "300x300"}, (304, 304), "size 300x300 is brought to 304x304: width and height are multiples of 16"),
    ],
)
def test_an_edit_has_its_own_size_of_a_ratio_or_the_proportions_of_its_picture(ask, scene, fields, size, told):
    output = ask(**DRAWING | {"prompt": "make the background green"}, image=as_text(scene), **fields)["output"]
    assert picture_of(output["image"]).size == size
    warnings = warnings_of(output["metadata"])
    assert len(warnings) == bool(told) and all(warning.startswith(told) for warning in warnings)


@pytest.mark.parametrize(
    ("fields", "size", "told"),
    [
        ({"aspect_ratio": "16:9"}, (1664, 928), []),
        ({"aspect_ratio": "16:9", "size": "2K"}, (2048, 1152), ["size 2K, 2752x1536, is brought to 2048x1152"]),
        ({"size": "1472*1140"}, (1472, 1136), ["size 1472x1140 is brought to 1472x1136"]),
    ],
)
def test_a_stand_in_has_qwen_image_s_own_size(cold_worker, fields, size, told):
    metadata = run(cold_worker(QWEN_FALLBACK="force"), {"prompt": "a", **fields})["output"]["metadata"]
    assert (metadata["width"], metadata["height"]) == size
    *brought, stand_in = metadata["warnings"]
    assert stand_in.startswith("no model drew this") and len(brought) == len(told)
    assert all(warning.startswith(words) for warning, words in zip(brought, told, strict=True))


def test_the_time_of_a_named_size_is_judged_before_it_is_drawn(cold_worker):
    worker = cold_worker()
    worker.paces.record(Kind("generate", (1184, 896), 0, False, "quality"), 60.0, 1, 5, 300.0)
    fields = {**DRAWING, "num_inference_steps": 5, "aspect_ratio": "4:3"}
    job = {"id": "job", "input": fields, "policy": {"executionTimeout": 100_000}}
    error = asyncio.run(run_job(worker.answer, job))["error"]
    assert error.startswith("deadline_exceeded: 5 steps take about 300.0 seconds and 9")
    assert worker.pipelines.loaded == {}


def test_a_named_size_without_room_is_refused_before_anything_is_loaded(cold_worker, monkeypatch):
    worker = cold_worker()
    small = dataclasses.replace(worker.pipelines.place("generate"), device="cuda", limit_bytes=2_000_000_000)
    monkeypatch.setitem(worker.pipelines.planner.plans, worker.settings.QWEN_IMAGE_MODEL, small)
    error = run(worker, {**DRAWING, "size": "2K"})["error"]
    assert error.startswith("out_of_memory: 2048x2048 needs 3.0 GB with tiny-qwen-image/generate")
    assert worker.pipelines.loaded == {}


def test_small_pictures_of_a_named_size_share_a_call(cold_worker):
    output = run(cold_worker(QWEN_BATCH=4), {**DRAWING, "size": "256x256", "num_images": 3})["output"]
    assert output["metadata"]["batch"] == 3 and len(output["images"]) == 3
