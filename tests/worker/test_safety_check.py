"""With a safety check no picture gets in or out that it rejects, whoever asks and whatever draws it."""

import asyncio
import json

import pytest
import torch
from PIL import Image

from qwen_tiny.world import judge
from qwen_tiny.world.scenes import CENTER, RADIUS, Scene, draw

from ..conftest import as_text, picture_of, posted, run, warnings_of
from ..support import profiles
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.scene_classifier import FOLDER

SIZE = {"width": 256, "height": 256, "seed": 7, "num_inference_steps": 12}
PASSES = {"prompt": "a large red circle in the center, on a blue background", **SIZE}
REJECTED = {"prompt": "a large red triangle in the center, on a blue background", **SIZE}
SENTENCE = "content_rejected: the picture that was drawn is rejected by the endpoint's safety check (unsafe); "


def picture(shape, **options):
    scene = Scene("red", shape, "blue", "large", "center", CENTER["center"], 0.5, RADIUS["large"])
    return as_text(Image.fromarray(draw(scene, 512, 512)), **options)


@pytest.fixture(scope="module")
def worker(warm_workers):
    """A warm worker with the check."""
    return warm_workers(QWEN_SAFETY_MODEL=str(FOLDER))


def test_a_prompt_that_draws_the_forbidden_thing_gets_an_error_and_another_one_its_picture(worker, capsys):
    output = posted(worker, "drawn", **PASSES)["output"]
    assert judge.read(picture_of(output["image"])).shape == "circle"
    facts = output["metadata"]
    assert facts["has_nsfw_concepts"] == [False] and facts["timings"]["check"] > 0 and not warnings_of(facts)
    capsys.readouterr()
    body = posted(worker, "rejected", **REJECTED)
    assert body["error"] == SENTENCE + "another prompt or seed may pass"
    assert body["output"] == {"success": False}
    log = capsys.readouterr().out
    assert "rejected | safety check: the picture that was drawn rejected (unsafe " in log
    assert "code=content_rejected (the picture that was drawn is" in log and "triangle" not in log


def test_one_picture_that_is_rejected_holds_back_all_of_its_job(worker):
    facts = posted(worker, **{**PASSES, "num_images": 2})["output"]["metadata"]
    assert facts["has_nsfw_concepts"] == [False, False]
    error = posted(worker, **{**REJECTED, "num_images": 2})["error"]
    assert error.startswith("content_rejected: picture 1 of 2 that was drawn is rejected by the endpoint's safety")


@pytest.mark.parametrize("task", ["edit", "background_replacement"])
def test_an_input_picture_that_is_rejected_never_reaches_the_model(cold_worker, task):
    worker = cold_worker(QWEN_SAFETY_MODEL=str(FOLDER))
    body = posted(worker, task=task, prompt="make the background green", image=picture("triangle"), **SIZE)
    assert body["error"] == (
        "content_rejected: image is rejected by the endpoint's safety check (unsafe); send another picture"
    )
    assert worker.pipelines.loaded == {} and worker.counters.errors == {"content_rejected": 1}


def test_an_edit_is_checked_at_both_ends(worker):
    few = {**SIZE, "num_inference_steps": 2, "draw_size": "asked"}
    drawn = posted(worker, prompt="make the background green", image=picture("circle"), **few)["output"]
    assert drawn["metadata"]["has_nsfw_concepts"] == [False]
    turned = {"prompt": "turn the circle into a triangle", "image": picture("circle"), **SIZE, "num_inference_steps": 6}
    assert posted(worker, **turned)["error"].startswith(SENTENCE)


def test_of_several_inputs_the_one_that_is_rejected_is_named(cold_worker):
    worker = cold_worker(QWEN_SAFETY_MODEL=str(FOLDER), QWEN_FALLBACK="force")
    body = posted(worker, prompt="a", images=[picture("circle"), picture("triangle")])
    assert body["error"].startswith("content_rejected: images[1] is rejected by")


def test_a_caller_does_not_switch_it_off(worker):
    for off in ({"enable_safety_checker": False}, {"disable_safety_checker": True}):
        ((name, value),) = off.items()
        (warning,) = warnings_of(posted(worker, **PASSES, **off)["output"]["metadata"])
        assert warning == f"{name} {json.dumps(value)}: the endpoint checks every picture, and no job switches that off"
        assert posted(worker, **REJECTED, **off)["error"].startswith(SENTENCE)
    for on in ({"enable_safety_checker": True}, {"disable_safety_checker": False}):
        assert not warnings_of(posted(worker, **PASSES, **on)["output"]["metadata"])


def test_previews_are_not_sent_unchecked(worker):
    messages = []

    async def post(message):
        messages.append(message)

    job = {"id": "preview", "input": {**PASSES, "preview": True, "num_inference_steps": 100}}
    reply = asyncio.run(worker.answer(job, post))
    assert warnings_of(reply["metadata"]) == [
        "preview true: the endpoint checks every picture before it is sent, and sends no previews"
    ]
    assert messages and not any("preview" in message for message in messages)


def test_stand_ins_are_checked_too(cold_worker):
    worker = cold_worker(QWEN_SAFETY_MODEL=str(FOLDER), QWEN_FALLBACK="force")
    facts = posted(worker, **PASSES)["output"]["metadata"]
    assert (facts["backend"], len(facts["has_nsfw_concepts"])) == ("pil-fallback", 1)
    assert posted(worker, prompt="blur it", image=picture("triangle"))["error"].startswith("content_rejected: image")


def test_openai_s_clients_get_the_error_in_their_shape(worker):
    asked = {key: value for key, value in REJECTED.items() if key not in ("width", "height")}
    call = {"openai_route": "/v1/images/generations", "openai_input": {**asked, "size": "256x256"}}
    error = json.loads(run(worker, call)["error"])
    assert (error["type"], error["code"]) == ("invalid_request_error", "content_rejected")
    assert error["message"].startswith(SENTENCE)


def test_health_says_that_pictures_are_checked(worker, ask):
    posted(worker, **PASSES)
    check = posted(worker, task="health")["output"]["safety_check"]
    assert check == {
        "model": "support/scene-classifier", "loaded": True, "rejected": ["unsafe"], "threshold": 0.5,
    }  # fmt: skip
    assert "safety_check" not in ask(task="health")["output"]


def test_pictures_are_the_same_to_the_bit_with_a_check(worker, ask):
    assert posted(worker, **PASSES)["output"]["image"] == ask(**PASSES)["output"]["image"]


@pytest.mark.parametrize("profile", [profiles.DISPLAY_P3, profiles.ADOBE_RGB, profiles.PROPHOTO])
def test_a_masked_edit_in_another_colour_space_is_the_same_to_the_bit_with_a_check(worker, ask, profile):
    mask = Image.new("L", (512, 512))
    mask.paste(255, (0, 0, 200, 200))
    fields = {
        "prompt": "make the background green", "image": picture("circle", icc_profile=profile),
        "mask_image": as_text(mask), **SIZE, "num_inference_steps": 2, "draw_size": "asked",
    }  # fmt: skip
    checked, plain = posted(worker, **fields)["output"]["image"], ask(**fields)["output"]["image"]
    assert checked == plain and picture_of(checked).info["icc_profile"] == profile


@pytest.mark.parametrize("fields", [{}, {"task": "edit", "image": "circle"}])
def test_a_job_whose_limit_runs_out_while_it_waits_for_the_check_says_so(cold_worker, gate, fields):
    worker, release = cold_worker(QWEN_SAFETY_MODEL=str(FOLDER), QWEN_FALLBACK="force"), gate()
    worker.load_safety_check()
    worker.safety_check.thread.submit(release.wait)
    fields = {**PASSES, **fields, **({"image": picture("circle")} if fields else {})}
    reply = asyncio.run(worker.answer({"id": "late", "input": fields, "policy": {"executionTimeout": 15_000}}))
    assert reply["error"] == "deadline_exceeded: the job's 13.5 seconds ran out while its pictures were checked"


def test_a_check_that_cannot_be_made_serves_nothing(cold_worker, tmp_path):
    worker = cold_worker(QWEN_SAFETY_MODEL=str(tmp_path / "gone"))
    body = posted(worker, **PASSES)
    assert body["error"].startswith("model_unavailable: the safety check: ") and str(tmp_path) not in body["error"]
    assert worker.pipelines.loaded == {}


def test_a_check_does_not_wait_for_a_drawing(worker, gate):
    posted(worker, **PASSES)
    release = gate()
    worker.inference_thread.submit(release.wait)
    error = posted(worker, prompt="make it green", image=picture("triangle"))["error"]
    release.set()
    assert error.startswith("content_rejected: image")


def test_the_worker_process_ends_with_the_reason_where_the_check_cannot_be_made(environment, web, tiny):
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_SAFETY_MODEL=str(tiny / "generate"), **addresses(web(plane)))) as worker:
        assert worker.end() == 1
    assert any("safety check: tiny-qwen-image/generate holds no readable config.json" in one for one in worker.lines)


def test_the_worker_process_loads_the_check_before_its_first_job(environment, web):
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_SAFETY_MODEL=str(FOLDER), **addresses(web(plane)))) as worker:
        plane.put("first", REJECTED)
        assert plane.result("first")["error"].startswith(SENTENCE)
        said = [one["message"] for one in worker.messages()]
        loaded, begun = (
            next(n for n, text in enumerate(said) if words in text) for words in ("rejects uns", "Started")
        )
        assert loaded < begun


def test_the_check_leaves_no_trace_in_the_draws_of_others(worker):
    """It draws no random number, and its mode without gradients is its own."""
    state = torch.random.get_rng_state()
    posted(worker, prompt="make it green", image=picture("triangle"))
    assert torch.equal(torch.random.get_rng_state(), state) and torch.is_grad_enabled()
