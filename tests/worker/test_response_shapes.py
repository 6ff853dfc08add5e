"""Whole jobs in the shapes of other APIs: their documented bodies, no stand-ins, and errors as in any job."""

import base64
import io
import json

import jsonschema
import pytest
from PIL import Image

from ..conftest import as_text, run
from ..jobs.test_response_shapes import FAL, REPLICATE

FOREIGN = ("runpod-public", "fal", "replicate")
SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 7}
# Each as its host documents it, with two steps for the test's sake; the sizes are from the documents' own lists.
BODIES = {
    "runpod-public": {
        "prompt": "A fashion-forward woman sitting at cobblestone street in Paris", "negative_prompt": "",
        "size": "512*512", "seed": -1, "enable_safety_checker": True,
    },
    "fal": {
        "prompt": "Mount Fuji with cherry blossoms", "image_size": "square", "num_inference_steps": 2, "seed": 42,
        "guidance_scale": 2.5, "sync_mode": True, "num_images": 2, "enable_safety_checker": True,
        "output_format": "png", "negative_prompt": "blurry, ugly", "acceleration": "none",
    },
    "replicate": {
        "prompt": "Bookstore window display", "go_fast": False, "guidance": 4, "num_inference_steps": 2, "seed": 42,
        "width": 512, "height": 512, "negative_prompt": " ", "output_format": "webp", "output_quality": 80,
        "enhance_prompt": False, "disable_safety_checker": False,
    },
}  # fmt: skip


def file_in(url):
    head, _, body = url.partition("base64,")
    assert head.startswith("data:image/") and head.endswith(";")
    return base64.b64decode(body)


def urls_of(reply):
    pictures = reply.get("images") or reply.get("output") or reply.get("image_urls") or [reply["image_url"]]
    return [picture["url"] if isinstance(picture, dict) else picture for picture in pictures]


@pytest.mark.parametrize("shape", FOREIGN)
def test_a_documented_body_gets_the_documented_reply_with_the_same_pictures(ask, shape):
    body = {"num_inference_steps": 2, **BODIES[shape]}
    reply = ask(**body, response_shape=shape, _job_id=shape)["output"]
    if shape == "runpod-public":
        assert reply["image_url"] == reply["result"] and set(reply) == {"image_url", "result", "metadata"}
    else:
        jsonschema.validate(reply, FAL if shape == "fal" else REPLICATE)
    own = ask(**body, _job_id=shape)["output"]
    files = [file_in(url) for url in urls_of(reply)]
    assert files == [base64.b64decode(text) for text in own.get("images", [own["image"]])]
    format = reply["metadata"]["output_format"]
    assert {Image.open(io.BytesIO(file)).format.lower() for file in files} == {format}
    assert all(url.startswith(f"data:image/{format};") for url in urls_of(reply))
    volatile = ("timings", "processing_time")
    assert all(own["metadata"][name] == reply["metadata"][name] for name in own["metadata"] if name not in volatile)


@pytest.mark.parametrize("shape", FOREIGN)
def test_an_edit_has_the_shape_too_and_its_own_size(ask, scene, shape):
    fields = {**SMALL, "prompt": "make it green", "image_url": f"data:image/png;base64,{as_text(scene)}"}
    reply = ask(**fields, response_shape=shape, output_format="jpeg", draw_size="asked")["output"]
    (url,) = urls_of(reply)
    assert Image.open(io.BytesIO(file_in(url))).size == (256, 256) and url.startswith("data:image/jpeg;")
    if shape == "fal":
        about = {"width": 256, "height": 256, "content_type": "image/jpeg"}
        assert reply["images"] == [{"url": url, **about}]


@pytest.mark.parametrize("shape", FOREIGN)
@pytest.mark.parametrize("asked_by", ["field", "setting"])
def test_without_a_model_a_foreign_shape_fails_and_gets_no_stand_in(cold_worker, scene, shape, asked_by):
    setting = {"QWEN_RESPONSE_SHAPE": shape} if asked_by == "setting" else {}
    field = {"response_shape": shape} if asked_by == "field" else {}
    worker = cold_worker(QWEN_FALLBACK="force", **setting)
    for fields in (SMALL, {**SMALL, "image": as_text(scene)}):
        body = run(worker, {**fields, **field})
        assert body["error"].startswith("model_unavailable: QWEN_FALLBACK=force") and body["output"] == {
            "success": False
        }
    assert run(worker, {"task": "health"})["output"]["counters"]["fallbacks"] == 0
    if asked_by == "setting":
        own = run(worker, {**SMALL, "response_shape": "worker"})["output"]
        assert own["metadata"]["backend"] == "pil-fallback" and own["image"]


@pytest.mark.parametrize("shape", FOREIGN)
def test_an_error_is_that_of_any_job(ask, shape):
    assert ask(prompt="", response_shape=shape) == ask(prompt="")


def test_openai_s_routes_have_openai_s_shape_on_every_endpoint(cold_worker):
    worker = cold_worker(QWEN_RESPONSE_SHAPE="replicate")
    call = {"prompt": "a red circle", "size": "256x256", "num_inference_steps": 2}
    reply = run(worker, {"openai_route": "/v1/images/generations", "openai_input": call})["output"]
    assert set(reply) == {"created", "data", "metadata"} and reply["data"][0]["b64_json"]
    assert run(worker, {"openai_route": "/v1/models"})["output"]["object"] == "list"
    refused = {"openai_route": "/v1/images/generations", "openai_input": call | {"response_shape": "fal"}}
    message = json.loads(run(worker, refused)["error"])["message"]
    assert message == "invalid_input: response_shape is not taken by /v1/images/generations; the route says it"
