"""Packages that people call endpoints with, unchanged, against worker processes behind a platform on loopback.

RunPod's provider of the AI SDK is a package of npm, and litellm and LangChain bring much: `make test-clients` installs
them, and without them their tests are skipped. OpenAI's own client has its tests in `test_openai_images.py`.
"""

import base64
import contextlib
import io
import json
import shutil
import subprocess

import boto3
import pytest
import requests
import runpod
from PIL import Image

from ..conftest import ROOT, as_text, file_of, only_proved, respond
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.patience import wait_until

AI_SDK = ROOT / "tests/support/ai_sdk"
QWEN_IMAGE, QWEN_EDIT, QWEN_EDIT_2511 = "qwen/qwen-image", "qwen/qwen-image-edit", "qwen/qwen-image-edit-2511"
PROMPT = "a large red circle in the center, on a blue background"
STEPS = {"num_inference_steps": 2}
PUBLIC = {"QWEN_RESPONSE_SHAPE": "runpod-public"}


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture
def endpoint(environment, web):
    """endpoint(plane, **settings): a worker process that takes the plane's jobs, and the address of its API."""
    with contextlib.ExitStack() as workers:

        def of(plane, **settings):
            address = web(plane)
            private = {"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}  # pictures of jobs lie on loopback
            workers.enter_context(WorkerProcess(environment(**private, **addresses(address), **settings)))
            return f"{address}/v2"

        yield of


@pytest.fixture
def bucket():
    """The settings of a bucket on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="pictures")
    yield {
        "BUCKET_ENDPOINT_URL": address, "BUCKET_NAME": "pictures", "BUCKET_ACCESS_KEY_ID": "key",
        "BUCKET_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip
    server.stop()


# RunPod's provider of the AI SDK


@pytest.fixture
def generate_image(tmp_path):
    """generate_image(api, model, **call): what the AI SDK's call of that name returns, or {"error": ...}."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (AI_SDK / "node_modules/@runpod/ai-sdk-provider").is_dir():
        pytest.skip("RunPod's provider is not installed; `make test-clients` installs it")

    def call_of(api, model, **call):
        request = json.dumps({"baseURL": f"{api}/client", "model": model, "call": call})
        result = tmp_path / "result.json"
        with subprocess.Popen(["node", "generate.mjs", request, str(result)], cwd=AI_SDK) as process:
            try:
                wait_until(lambda: process.poll() is not None)
            finally:
                process.kill()
        return json.loads(result.read_text())

    return call_of


def drawn_by_job(plane, job_id, **fields):
    """The picture of a plain job in the worker's own shape, in base64."""
    plane.put(job_id, {**fields, "response_shape": "worker"})
    return plane.result(job_id)["output"]["image"]


def test_runpod_s_provider_draws_and_edits_on_an_endpoint_in_its_shape(generate_image, endpoint, web, scene):
    plane = ControlPlane()
    api = endpoint(plane, **PUBLIC)
    options = {"runpod": {"negative_prompt": "blurry, low quality", "enable_safety_checker": True, **STEPS}}
    call = {"prompt": PROMPT, "size": "512x512", "seed": 42, "providerOptions": options}
    (drawn,) = generate_image(api, QWEN_IMAGE, **call)["pictures"]
    assert drawn["mediaType"] == "image/png" and opened(drawn["base64"]).size == (512, 512)
    fields = {"prompt": PROMPT, "size": "512x512", "seed": 42, "negative_prompt": "blurry, low quality", **STEPS}
    assert drawn["base64"] == drawn_by_job(plane, "generate", **fields)

    edit = {"prompt": {"text": "make it green", "images": [as_text(scene)]}, "size": "512x512", "seed": 42}
    (edited,) = generate_image(api, QWEN_EDIT, **edit, providerOptions={"runpod": STEPS})["pictures"]
    assert opened(edited["base64"]).size == (512, 512)
    fields = {"prompt": "make it green", "image": as_text(scene), "size": "512x512", "seed": 42, **STEPS}
    assert edited["base64"] == drawn_by_job(plane, "edit", **fields)

    png = file_of(scene)
    edit["prompt"]["images"] = [web(lambda handler: respond(handler, png, Content_Type="image/png")) + "/scene.png"]
    (by_url,) = generate_image(api, QWEN_EDIT_2511, **edit, providerOptions={"runpod": STEPS})["pictures"]
    assert by_url["mediaType"] == "image/jpeg" and opened(by_url["base64"]).size == (512, 512)


def test_runpod_s_provider_waits_for_a_job_that_runsync_does_not(generate_image, endpoint):
    """And by the two numbers that it sends along; the job chooses the shape, which the endpoint does not have."""
    plane = ControlPlane(sync=0)
    waiting = {"maxPollAttempts": 1000, "pollIntervalMillis": 200}
    options = {"runpod": {"response_shape": "runpod-public", **waiting, **STEPS}}
    api = endpoint(plane)
    (drawn,) = generate_image(api, QWEN_IMAGE, prompt=PROMPT, size="512x512", providerOptions=options)["pictures"]
    assert opened(drawn["base64"]).size == (512, 512)


def test_runpod_s_provider_reads_pictures_from_the_bucket(generate_image, endpoint, bucket):
    call = {"prompt": PROMPT, "size": "512x512", "providerOptions": {"runpod": STEPS}}
    answer = generate_image(endpoint(ControlPlane(), **PUBLIC, **bucket), QWEN_IMAGE, **call)
    (drawn,) = answer["pictures"]
    assert opened(drawn["base64"]).size == (512, 512)
    (told,) = answer["providerMetadata"]["runpod"]["images"]
    assert told["url"].startswith(f"{bucket['BUCKET_ENDPOINT_URL']}/pictures/sync-")


def test_without_a_model_and_for_a_refusal_runpod_s_provider_raises(generate_image, endpoint, scene):
    api = endpoint(ControlPlane(), QWEN_FALLBACK="force", **PUBLIC)
    for model, prompt in ((QWEN_IMAGE, PROMPT), (QWEN_EDIT, {"text": "blur it", "images": [as_text(scene)]})):
        error = generate_image(api, model, prompt=prompt, size="512x512")["error"]
        assert "Image generation failed: model_unavailable: QWEN_FALLBACK=force" in error
    error = generate_image(api, QWEN_IMAGE, prompt=PROMPT, size="4096x4096")["error"]
    assert "Image generation failed: invalid_input: width (sent as size) must be" in error


def test_a_stand_in_of_an_endpoint_with_a_bucket_is_no_picture_to_runpod_s_provider(generate_image, endpoint, bucket):
    """In the worker's own shape too: the provider reads `image_url`, and no field that says what it is."""
    api = endpoint(ControlPlane(), QWEN_FALLBACK="force", QWEN_DELIVERY="url", **bucket)
    options = {"runpod": {"maxPollAttempts": 3, "pollIntervalMillis": 200}}
    answer = generate_image(api, QWEN_IMAGE, prompt=PROMPT, size="512x512", providerOptions=options)
    assert "pictures" not in answer and answer["error"]


# RunPod's SDK as a client


@pytest.fixture
def sdk(monkeypatch):
    """sdk(api): the SDK's endpoint at this address."""

    def of(api):
        monkeypatch.setattr(runpod, "endpoint_url_base", api)
        return runpod.Endpoint("client", api_key="key")

    return of


def test_runpod_s_sdk_runs_a_job_in_every_shape(sdk, endpoint):
    plane = ControlPlane()
    client = sdk(endpoint(plane))
    fields = {"prompt": PROMPT, "width": 256, "height": 256, "seed": 7, **STEPS}
    own = client.run_sync(fields)
    assert own["success"] and opened(own["image"]).size == (256, 256)
    job = client.run({"input": {**fields, "response_shape": "runpod-public"}})
    output = job.output(timeout=600)
    assert job.status() == "COMPLETED" and output["image_url"] == f"data:image/png;base64,{own['image']}"
    assert client.run_sync({**fields, "response_shape": "replicate"})["output"] == [output["image_url"]]
    assert client.run_sync({**fields, "response_shape": "fal"})["images"][0]["url"] == output["image_url"]
    failed = client.run({"prompt": "", "response_shape": "fal"})
    assert failed.output(timeout=600) == {"success": False} and failed.status() == "FAILED"


@pytest.mark.parametrize("shape", ["worker", pytest.param("fal", marks=only_proved)])
def test_runpod_s_sdk_streams_progress_and_then_the_reply(sdk, endpoint, shape):
    client = sdk(endpoint(ControlPlane(), STREAM="1", QWEN_PROGRESS_SECONDS="0.05"))
    fields = {"prompt": PROMPT, "width": 256, "height": 256, "num_inference_steps": 8, "response_shape": shape}
    *progress, reply = client.run(fields).stream()
    assert {"stage", "step"} <= set(progress[0])
    assert "images" in reply if shape == "fal" else reply["success"]
    assert client.run_sync({**fields, "prompt": "b"})[-1]["metadata"]["prompt"] == "b"


# Others that call OpenAI's Images API


@pytest.fixture
def images_api(endpoint):
    """images_api(**settings): the address of OpenAI's routes before a worker process."""

    def of(**settings):
        return f"{endpoint(ControlPlane(), **settings)}/client/openai/v1"

    return of


@pytest.mark.filterwarnings("ignore::UserWarning:pydantic")  # of litellm's own types
def test_litellm_draws_and_raises_without_a_model(images_api, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches its prices when it is imported
    litellm = pytest.importorskip("litellm", reason="litellm is not installed; `make test-clients` installs it")
    call = {"model": "openai/qwen-image", "prompt": PROMPT, "size": "256x256", "api_key": "key", "max_retries": 0}
    drawn = litellm.image_generation(**call, api_base=images_api(), n=2, quality="low", **STEPS)
    assert [opened(picture["b64_json"]).size for picture in drawn.data] == [(256, 256)] * 2
    with pytest.raises(litellm.InternalServerError, match="model_unavailable"):
        litellm.image_generation(**call, api_base=images_api(QWEN_FALLBACK="force"))


def test_langchain_s_image_tool_gets_a_url_of_the_bucket(images_api, bucket):
    """It reads `url` alone, asks for no format, and sends no field of the worker's own."""
    wrapper = pytest.importorskip(
        "langchain_community.utilities.dalle_image_generator",
        reason="langchain-community is not installed; `make test-clients` installs it",
    )
    api = images_api(**bucket, QWEN_DELIVERY="url")
    url = wrapper.DallEAPIWrapper(base_url=api, api_key="key", size="256x256", max_retries=0).run(PROMPT)
    assert Image.open(io.BytesIO(requests.get(url, timeout=60).content)).size == (256, 256)
