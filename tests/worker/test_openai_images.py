"""OpenAI's own client gets pictures, models and errors from the worker; what a call means is told without one."""

import base64
import io
import json
import threading

import openai
import pytest
from PIL import Image

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.openai_images import EDITS, GENERATIONS, MODELS, Call
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import posted_bytes, success_reply

from ..conftest import as_text, run
from ..support.control_plane import ControlPlane, WorkerProcess, addresses

NAMES = {"generate": "tiny-qwen-image/generate", "edit": "tiny-qwen-image/edit"}
EXTRA = {"num_inference_steps": 2}


@pytest.fixture
def client(web):
    """client(address): the official client, whose calls become jobs of the plane that is served there."""
    opened = []

    def of(address):
        opened.append(openai.OpenAI(api_key="key", base_url=f"{address}/v2/client/openai/v1", max_retries=0))
        return opened[-1]

    yield of
    for one in opened:
        one.close()


def opened(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture.b64_json)))


@pytest.mark.parametrize("stream", ["0", "1"])
def test_the_official_client_against_the_worker_process(environment, web, client, scene, stream):
    plane = ControlPlane()
    address = web(plane)
    with WorkerProcess(environment(STREAM=stream, QWEN_FALLBACK="forbid", **addresses(address))) as worker:
        ours = client(address)
        assert [one.id for one in ours.models.list()] == list(NAMES.values())
        drawn = ours.images.generate(
            prompt="a red circle", model=NAMES["generate"], n=2, size="256x256", quality="auto", user="me",
            response_format="b64_json", output_format="webp", extra_body={**EXTRA, "seed": 5},
        )  # fmt: skip
        assert [opened(one).size for one in drawn.data] == [(256, 256)] * 2 and opened(drawn.data[0]).format == "WEBP"
        assert drawn.created > 1_700_000_000
        assert drawn.metadata["backend"] == "qwen-image" and drawn.metadata["seeds"] == [5, 6]
        plane.put("same", {"prompt": "a red circle", "size": "256x256", "seed": 6, "output_format": "webp", **EXTRA})
        output = plane.result("same")["output"]
        assert (output[-1] if stream == "1" else output)["image"] == drawn.data[1].b64_json
        with pytest.raises(openai.BadRequestError) as caught:
            ours.images.generate(prompt="a", size="3000x256")
        assert caught.value.code == "invalid_input" and caught.value.type == "invalid_request_error"
        assert "invalid_input: width (sent as size) must be a whole number" in caught.value.message
        edited = ours.post(
            "/images/edits",
            body={"prompt": "make it green", "images": [{"image_url": uri_of(scene)}], "size": "256x256", **EXTRA},
            cast_to=openai.types.ImagesResponse,
        )
        assert opened(edited.data[0]).size == (256, 256) and edited.metadata["model"] == NAMES["edit"]
        assert worker.terminate() == 0


def uri_of(picture):
    return f"data:image/png;base64,{as_text(picture)}"


def meant(route=GENERATIONS, **asked):
    """The call's fields but its shape, which is the one that its reply is made from."""
    fields = Call({"openai_route": route, "openai_input": asked}, NAMES).fields()
    assert fields.pop("response_shape") == "worker"
    return fields


def test_what_a_call_means():
    asked = {"prompt": "a", "n": 2, "user": "me", "stream": False, "size": "auto", "background": "opaque"}
    asked |= {"model": NAMES["generate"].upper(), "response_format": "url", "quality": "auto", "moderation": "low"}
    assert meant(**asked, style=None) == {"task": "generate", **asked}
    warnings = []
    request = parse(meant(**asked), "job", warn=warnings.append, models=NAMES)
    assert warnings == [] and (request.num_images, request.delivery, request.preset) == (2, "url", "quality")
    loras = [{"path": "Org/Name"}]
    assert meant(prompt="a", preset="fast", loras=loras)["loras"] == loras
    for images in (["x", "y"], [{"image_url": "x"}, "y"]):
        assert parse(meant(EDITS, prompt="a", images=images), "job").images == ("x", "y")
    assert parse(meant(EDITS, prompt="a", image=["x"], images=["x"]), "job").images == ("x",)
    assert meant(EDITS, prompt="a", image="x", strength=0.5) == {
        "task": "edit", "prompt": "a", "image": "x", "strength": 0.5,
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="exactly one of image, image_url, images must be given"):
        parse(meant(EDITS, prompt="a", image=["x"], images=["y"]), "job")
    masked = parse(meant(EDITS, prompt="a", image="x", mask={"image_url": "y"}), "job")
    assert (masked.images, masked.mask_image, masked.mask_from) == (("x",), "y", "alpha")
    assert meant(EDITS, prompt="a", image="x", mask="y", mask_from="white")["mask_from"] == "white"
    assert Call({"openai_route": MODELS}, NAMES).fields() == {"task": "health"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"openai_route": "/v1/chat/completions"}, "openai_route must be /v1/images/generations, /v1/images/edits or"),
        ({"openai_route": ["x"]}, "openai_route must be .* not a list of 1"),
        ({"openai_route": GENERATIONS}, "openai_input must be an object, not null"),
        ({"openai_route": GENERATIONS, "openai_input": {}, "prompt": "a"}, '"prompt" is not a field of a job with'),
        ({"openai_route": EDITS, "openai_input": {"mask": "x", "mask_image": "x"}}, "mask_image is given twice"),
        ({"openai_route": EDITS, "openai_input": {"task": "debug"}}, "task is not taken by"),
        ({"openai_route": EDITS, "openai_input": {"response_shape": "fal"}}, "response_shape is not taken by"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_meant_is_refused_by_its_field(given, words):
    with pytest.raises(InvalidInput, match=words):
        Call(given, NAMES).fields()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"response_format": ""}, "response_format must be 'b64_json' or 'url', not"),
        ({"quality": "best"}, "quality must be 'low', 'medium', 'high' or 'hd', not \"best\""),
        ({"quality": "high", "preset": "fast"}, 'given twice, as quality ("quality") and as preset ("fast")'),
        ({"loras": [{"path": "x"}]}, "loras[0].path must be ORG/NAME (a hub repository)"),
        ({"stream": True}, "stream must be false, not true: the endpoint's settings say"),
        ({"partial_images": False}, "partial_images must be 0, not false: preview shows unfinished pictures"),
        ({"output_compression": 101}, "output_quality (sent as output_compression) must be a whole number from 1 to"),
        ({"n": 5}, "num_images (sent as n) must be a whole number from 1 to 4"),
        ({"image": ["aGk=", "aGk="]}, "images must hold one image at most for generate"),
    ],
)
def test_the_limits_are_those_of_every_job_and_the_error_is_in_openai_s_shape(ask, asked, words):
    body = ask(openai_route=GENERATIONS, openai_input={"prompt": "a", **asked})
    error = json.loads(body["error"])
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_input"
    assert words in error["message"] and set(body) == {"error"}


def test_a_fault_of_ours_is_a_server_error_and_asks_for_a_fresh_worker(cold_worker, monkeypatch):
    worker = cold_worker()

    def broken(*_):
        raise RuntimeError("CUDA error: secret at /srv/weights")

    monkeypatch.setattr("qwen_worker.loading.loader.Loader.place", broken)
    monkeypatch.setattr("qwen_worker.memory.cuda.has_spoiled", lambda error: True)
    body = run(worker, {"openai_route": GENERATIONS, "openai_input": {"prompt": "a"}}, "job-9")
    error = json.loads(body["error"])
    assert error["type"] == "server_error" and error["message"] == "internal: job-9"
    assert body["stopPod"] is True and "secret" not in json.dumps(body)


@pytest.mark.parametrize(("route", "asked"), [(GENERATIONS, {}), (EDITS, {"image": True})])
def test_without_a_model_a_call_fails_and_gets_no_stand_in(cold_worker, scene, route, asked):
    asked = {"prompt": "blur it", "size": "256x256", **({"image": as_text(scene)} if asked else {})}
    worker = cold_worker(QWEN_FALLBACK="force")
    error = json.loads(run(worker, {"openai_route": route, "openai_input": asked})["error"])
    assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
    assert error["message"].startswith("model_unavailable: QWEN_FALLBACK=force")
    assert run(worker, {})["output"]["counters"]["fallbacks"] == 0


def test_without_a_model_the_official_client_raises(environment, web, client):
    address = web(ControlPlane())
    with WorkerProcess(environment(QWEN_FALLBACK="force", **addresses(address))):
        with pytest.raises(openai.InternalServerError) as caught:
            client(address).images.generate(prompt="a", size="256x256")
        assert caught.value.code == "model_unavailable"


def test_the_answer_is_never_longer_than_the_reply_that_was_measured():
    request = parse({"task": "edit", "prompt": "a", "image": "aGk="}, "a")
    for field in ("image", "image_url"):
        for pictures in (["x"], ["x", "y"]):
            reply = success_reply(request, {"backend": "qwen-image"}, pictures, field)
            answered = Call({"openai_route": EDITS}, NAMES).reply(reply)
            assert posted_bytes(answered) <= posted_bytes(reply) and len(answered["data"]) == len(pictures)


def test_two_calls_at_once_each_get_their_own(environment, web, client):
    address = web(ControlPlane())
    with WorkerProcess(environment(QWEN_CONCURRENCY="2", **addresses(address))):
        ours, found = client(address), {}

        def draw(side):
            drawn = ours.images.generate(prompt="a", size=f"{side}x{side}", extra_body=EXTRA)
            found[side] = opened(drawn.data[0]).size

        threads = [threading.Thread(target=draw, args=(side,)) for side in (256, 512)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert found == {256: (256, 256), 512: (512, 512)}
