"""The worker as the platform starts it: a process of its own, in the SDK's loop, its local API and its test input."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests

from .conftest import ROOT, picture_of, respond

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}
PATIENCE = 120  # seconds; a process imports torch before its first picture


@pytest.fixture
def environment(tiny, tmp_path):
    """environment(**variables): the shell's, less what would steer the worker or the SDK."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "QWEN_", "SERVER_"))}
    models = {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}
    # An empty home: the SDK prefers the credentials in ~/.runpod to the environment's.
    return lambda **variables: {**kept, **models, "HOME": str(tmp_path), "NO_PROXY": "*", **variables}


def run_worker(*arguments, env):
    return subprocess.run(
        [sys.executable, "runpod_handler.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip


def test_one_job_from_the_command_line(environment):
    done = run_worker("--test_input", json.dumps({"input": SMALL}), env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "task=generate size=256x256 steps=2" in done.stdout and "backend=qwen-image code=ok" in done.stdout


def test_the_repository_s_test_input_is_a_job(environment):
    done = run_worker(env=environment(QWEN_FALLBACK="force"))
    assert done.returncode == 0 and "backend=pil-fallback code=ok" in done.stdout


def test_a_failed_job_from_the_command_line_exits_1(environment):
    done = run_worker("--test_input", '{"input": {"prompt": ""}}', env=environment())
    assert done.returncode == 1 and "invalid_input: prompt must not be empty" in done.stdout


def test_a_setting_that_cannot_be_used_ends_the_start_by_its_name(environment):
    done = run_worker(env=environment(QWEN_FALLBACK="sometimes"))
    assert done.returncode == 1 and "QWEN_FALLBACK" in done.stderr and "Traceback" not in done.stderr


def test_a_laptop_is_answered_in_moments_and_fetches_nothing(environment, tmp_path):
    env = environment(QWEN_IMAGE_MODEL="Qwen/Qwen-Image", HF_HOME=str(tmp_path / "hub"), CUDA_VISIBLE_DEVICES="")
    done = run_worker("--test_input", '{"input": {"prompt": "a cat"}}', env=env)
    assert "needs a CUDA GPU with 62.3 GB" in done.stdout and "backend=pil-fallback code=ok" in done.stdout
    assert not (tmp_path / "hub").exists()


def test_the_local_api_serves_a_job(environment):
    from examples.quickstart import free_port

    port = free_port()
    command = [sys.executable, "runpod_handler.py", "--rp_api_port", str(port)]
    env = environment(SERVER_MODE="local", QWEN_FALLBACK="force")
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            body = posted_when_up(f"http://127.0.0.1:{port}/runsync", {"input": SMALL})
        finally:
            server.terminate()
    assert body["status"] == "COMPLETED" and picture_of(body["output"]["image"]).size == (256, 256)


def posted_when_up(url, body):
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return requests.post(url, json=body, timeout=PATIENCE).json()
        except requests.ConnectionError:
            assert time.monotonic() < ends, "the local API did not come up"
            time.sleep(0.2)


class ControlPlane:
    """As much of the platform as the SDK's loop speaks to: take, stop, done, ping."""

    def __init__(self):
        self.jobs, self.stops = queue.Queue(), queue.Queue()
        self.taken, self.done = {}, {}
        self.changed = threading.Condition()

    def __call__(self, handler):
        kind = handler.path.split("/")[2]
        if kind in ("job-take", "job-stop"):
            try:
                item = (self.jobs if kind == "job-take" else self.stops).get(timeout=0.5)
            except queue.Empty:
                return respond(handler, b"", 204)
            if kind == "job-take":
                self.note(self.taken, item["id"], item)
            body = item if kind == "job-take" else {"jobsToStop": [item]}
            return respond(handler, json.dumps(body).encode(), Content_Type="application/json")
        if kind == "job-done":
            data = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            self.note(self.done, handler.path.split("/")[4].split("?")[0], data)
        return respond(handler, b"{}", Content_Type="application/json")

    def note(self, where, name, value):
        with self.changed:
            where[name] = value
            self.changed.notify_all()

    def wait(self, where, name):
        with self.changed:
            assert self.changed.wait_for(lambda: name in where, PATIENCE), f"{name} is not among {list(where)}"
            return where[name]


def test_the_sdk_s_loop_takes_jobs_cancels_one_and_ends_on_sigterm(environment, web):
    plane = ControlPlane()
    address = web(plane)
    env = environment(
        RUNPOD_WEBHOOK_GET_JOB=f"{address}/v2/job-take/$ID?gpu=A40",
        RUNPOD_WEBHOOK_POST_OUTPUT=f"{address}/v2/job-done/$RUNPOD_POD_ID/$ID?gpu=A40",
        RUNPOD_WEBHOOK_PING=f"{address}/v2/ping/$RUNPOD_POD_ID?gpu=A40",
        RUNPOD_POD_ID="pod", RUNPOD_AI_API_KEY="key", RUNPOD_ENDPOINT_ID="endpoint", RUNPOD_PING_INTERVAL="1000",
        RUNPOD_SKIP_AUTO_SYSTEM_CHECKS="true", RUNPOD_SKIP_GPU_CHECK="true",
    )  # fmt: skip
    command = [sys.executable, "runpod_handler.py"]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as worker:
        lines = []
        threading.Thread(target=lambda: lines.extend(worker.stdout), daemon=True).start()
        try:
            plane.jobs.put({"id": "good-1", "input": SMALL})
            first = plane.wait(plane.done, "good-1")
            assert first["output"]["metadata"]["backend"] == "qwen-image"
            plane.jobs.put(
                {"id": "long", "input": {**SMALL, "num_inference_steps": 100, "width": 1024, "height": 1024}}
            )
            plane.wait(plane.taken, "long")
            time.sleep(1)
            plane.stops.put("long")
            plane.jobs.put({"id": "good-2", "input": {**SMALL, "seed": first["output"]["metadata"]["seed"]}})
            second = plane.wait(plane.done, "good-2")
            assert second["output"]["image"] == first["output"]["image"]
            assert "long" not in plane.done
            os.kill(worker.pid, signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        finally:
            # The SDK's ping process outlives a worker that is killed.
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    assert any(one["requestId"] == "good-2" and "code=ok" in one["message"] for one in messages)
