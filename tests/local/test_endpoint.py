"""The endpoint as its user starts it, called by the official clients; it draws with the tiny checkpoint."""

import asyncio
import html
import io
import json
import re
import shutil
import subprocess

import aiohttp
import openai
import pytest
import requests
import runpod
from PIL import Image

from ..conftest import environment_of, file_of, picture_of, respond
from ..support.local_endpoint import LocalEndpoint, is_alive
from ..support.patience import wait_until

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 3}
LONG = {**SMALL, "width": 1024, "height": 1024, "num_inference_steps": 100}


@pytest.fixture
def sdk(endpoint, monkeypatch):
    """RunPod's client."""
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{endpoint.address}/v2")
    return runpod.Endpoint("local", api_key="any")


@pytest.fixture
def client(endpoint):
    """OpenAI's client."""
    with openai.OpenAI(api_key="any", base_url=f"{endpoint.address}/v2/local/openai/v1", max_retries=0) as one:
        yield one


def state_of(endpoint, job_id):
    return requests.get(f"{endpoint.address}/v2/local/status/{job_id}", timeout=60).json()


def test_runpod_s_client_gets_a_picture_both_ways(sdk, endpoint):
    output = sdk.run_sync(SMALL)
    assert output["success"] and picture_of(output["image"]).size == (256, 256)
    assert output["metadata"]["backend"] == "qwen-image"
    job = sdk.run({**SMALL, "seed": output["metadata"]["seed"]})
    assert job.output(timeout=600)["image"] == output["image"] and job.status() == "COMPLETED"
    endpoint.wait_for(lambda: endpoint.said(f"{job.job_id} generate "))
    assert sdk.health()["workers"]["ready"] == 1 and sdk.health()["jobs"]["completed"] >= 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_of_the_start_page_saves_a_picture(endpoint, tmp_path):
    page = requests.get(endpoint.address, timeout=60).text
    command = html.unescape(re.search(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)[1])
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (512, 512)


def test_runpod_s_client_sees_progress_and_previews_and_stops_a_job(sdk, endpoint):
    job = sdk.run({**LONG, "preview": True})
    seen = []

    def drawing():
        seen.append(state_of(endpoint, job.job_id).get("output", {}))
        return any("preview" in one for one in seen) and seen[-1].get("step", 0) > 2

    wait_until(drawing, endpoint.process.pid, lambda: len(endpoint.lines))
    assert seen[-1]["total"] == 100 and seen[-1]["stage"] == "drawing"
    assert job.cancel()["status"] == "CANCELLED"
    assert sdk.run_sync(SMALL)["success"]  # by the only worker, which therefore has stopped
    assert job.status() == "CANCELLED" and "output" not in state_of(endpoint, job.job_id)
    assert endpoint.said(f"{job.job_id} generate ") and sdk.purge_queue() == {"removed": 0, "status": "completed"}


def test_a_refused_job_fails_with_the_worker_s_words(sdk, endpoint):
    job = sdk.run({"prompt": ""})
    job.output(timeout=600)
    assert job.status() == "FAILED"
    assert state_of(endpoint, job.job_id)["error"] == "invalid_input: prompt must not be empty"


def test_the_worker_gets_the_limit_and_the_bucket_of_a_job(sdk, endpoint):
    s3 = {"accessId": "x", "accessSecret": "y", "bucketName": "pictures", "endpointUrl": "http://127.0.0.1:9"}
    job = sdk.run({"input": {**SMALL, "delivery": "url"}, "s3Config": s3})
    job.output(timeout=600)
    assert state_of(endpoint, job.job_id)["error"].startswith("invalid_input: s3Config.endpointUrl must lead to")
    # of many short steps: the worker looks at its limit between two of them, a second before the endpoint's own
    long = {**SMALL, "width": 512, "height": 512, "num_inference_steps": 100, "num_images": 4}
    job = sdk.run({"input": long, "policy": {"executionTimeout": 10_000}})
    job.output(timeout=600)
    assert state_of(endpoint, job.job_id)["error"].startswith("deadline_exceeded: ")


def test_the_webhook_of_a_job_hears_its_reply(sdk, web):
    heard = []

    def hear(handler):
        heard.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        respond(handler, b"")

    job = sdk.run({"input": {"task": "health"}, "webhook": web(hear)})
    wait_until(lambda: heard)
    assert heard[0]["id"] == job.job_id and heard[0]["status"] == "COMPLETED" and "counters" in heard[0]["output"]


def test_runpod_s_asynchronous_client_works_too(sdk):
    async def run():
        async with aiohttp.ClientSession() as session:
            asynchronous = runpod.AsyncioEndpoint("local", session, api_key="any")
            job = await asynchronous.run({"task": "health"})
            output = await job.output(timeout=600)
            return output, (await asynchronous.health())["workers"]["ready"], await asynchronous.purge_queue()

    output, ready, purged = asyncio.run(run())
    assert "counters" in output and ready == 1 and purged["removed"] == 0


def test_openai_s_client_draws_edits_with_a_mask_and_lists_models(client, scene):
    assert [one.id for one in client.models.list()] == ["tiny-qwen-image/generate", "tiny-qwen-image/edit"]
    steps = {"num_inference_steps": 2, "seed": 7}
    drawn = client.images.generate(prompt="a red circle", size="256x256", n=2, extra_body=steps)
    assert [picture_of(one.b64_json).size for one in drawn.data] == [(256, 256)] * 2
    with pytest.raises(openai.BadRequestError, match="width .sent as size. must be a whole number"):
        client.images.generate(prompt="a", size="3000x256")

    # The left half is transparent, which is where OpenAI's masks ask for a change.
    mask = Image.new("RGBA", scene.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, scene.width // 2, scene.height))
    edit = {"prompt": "a green square", "size": "512x512", "extra_body": steps}
    edited = client.images.edit(image=io.BytesIO(file_of(scene)), mask=io.BytesIO(file_of(mask)), **edit)
    after = picture_of(edited.data[0].b64_json).convert("RGB")
    right, left = (300, 0, 512, 512), (0, 0, 200, 512)
    assert after.crop(right).tobytes() == scene.crop(right).tobytes()
    assert after.crop(left).tobytes() != scene.crop(left).tobytes()
    assert edited.metadata["model"] == "tiny-qwen-image/edit" and edited.metadata["seed"] == 7
    pair = [("a.png", file_of(scene)), ("b.png", file_of(scene))]
    with pytest.raises(openai.BadRequestError, match="strength"):  # a field of the form that only the worker reads
        client.images.edit(image=pair, prompt="a", extra_body={"strength": 2})


def test_a_call_of_openai_s_client_that_is_given_up_ends_its_job(client, endpoint):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).images.generate(
            prompt="a", size="1024x1024", extra_body={"num_inference_steps": 100}
        )
    endpoint.wait_for(lambda: any("openai generations" in line and "CANCELLED" in line for line in endpoint.lines))


def test_a_worker_that_is_killed_is_replaced_and_its_job_done_by_the_next_one(sdk, endpoint):
    (worker,) = endpoint.workers()
    job = sdk.run(LONG)
    endpoint.wait_for(lambda: state_of(endpoint, job.job_id).get("output", {}).get("step", 0) > 1)
    first = state_of(endpoint, job.job_id)["workerId"]
    old = endpoint.family()
    worker.kill()
    endpoint.wait_for(lambda: state_of(endpoint, job.job_id).get("retries") == 1)
    endpoint.wait_for(lambda: state_of(endpoint, job.job_id).get("output", {}).get("step", 0) > 1)
    assert state_of(endpoint, job.job_id)["workerId"] not in (first, None)
    assert not any(map(is_alive, old)), "the heartbeat of a dead worker lives on"
    assert endpoint.said(f"{job.job_id} goes to the next worker, because {first} ended while it ran the job")
    assert endpoint.said(f"{first} was ended by signal 9; the next one starts now")
    job.cancel()


def test_sigterm_ends_the_workers_in_the_middle_of_a_job(sdk, endpoint):
    job = sdk.run(LONG)
    endpoint.wait_for(lambda: state_of(endpoint, job.job_id).get("output", {}).get("step", 0) > 1)
    family = endpoint.family()
    assert len(family) >= 3 and endpoint.end() == 0
    wait_until(lambda: not any(map(is_alive, family)))


# A server of its own, whose worker streams and loads no model


@pytest.fixture
def streaming(tiny, tmp_path):
    environment = environment_of(tiny, tmp_path, STREAM="1", QWEN_FALLBACK="force", QWEN_PROGRESS_SECONDS="0.01")
    with LocalEndpoint(environment, "--workers", "2", "--verbose") as one:
        one.wait_for(lambda: one.said("worker-1 ready after") and one.said("worker-2 ready after"))
        yield one


def test_runpod_s_client_streams_and_no_worker_outlives_a_server_that_is_killed(streaming, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{streaming.address}/v2")
    sdk = runpod.Endpoint("local", api_key="any")
    assert sdk.health()["workers"]["idle"] == 2
    *progress, reply = sdk.run(SMALL).stream()
    assert {"stage", "step"} <= set(progress[0]) and reply["metadata"]["backend"] == "pil-fallback"
    assert streaming.said("task=generate size=256x256")  # the workers' own log
    family = streaming.family()
    streaming.process.kill()
    wait_until(lambda: not any(map(is_alive, family)))
