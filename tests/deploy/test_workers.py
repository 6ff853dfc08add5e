"""`deploy_qwen.py` with real workers behind the queue: `runpod_handler.py` on the tiny checkpoint."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from PIL import Image

import runpod_handler
from examples.quickstart import free_port
from qwen_deploy import fill
from qwen_deploy.environment import worker_settings
from qwen_deploy.runpod.client import Clock

from ..conftest import ROOT, run
from ..support.local_hub import LocalHub
from ..support.patience import outcome
from .conftest import NEW, SHIP, settable_fields
from .fake_runpod import Build

SMALL = ("--test-size", "256", "--test-steps", "2", "--wait", "3600")
SHORT_PAUSES = Clock(pause=lambda seconds: time.sleep(min(seconds, 0.1)))


@pytest.fixture
def models(tiny):
    return {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}


@pytest.fixture
def pool():
    """One thread, so that jobs are in progress while their worker draws."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def reply_of(body):
    """Of what a worker posts: the output, or the error in its place."""
    return {"error": body["error"]} if "error" in body else body["output"]


class WorkerProcess:
    """`runpod_handler.py` with its own API. `environment` is all that it has."""

    def __init__(self, environment):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}/runsync"
        self.process = subprocess.Popen(
            [sys.executable, "runpod_handler.py", "--rp_api_port", str(port)],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def answer(self, fields):
        """The reply."""
        return outcome(self.process, lambda: self.post(fields))

    def post(self, fields):
        while True:
            try:
                return reply_of(requests.post(self.address, json={"input": fields}).json())
            except requests.ConnectionError:  # the API is not up yet
                assert self.process.poll() is None, "the worker's process ended"
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def process_build(models, pool, tmp_path):
    """A build whose worker is a process with the endpoint's environment; a change of it brings a new process."""
    workers = {}

    def answer(fields, env):
        key = tuple(sorted(env.items()))
        if key not in workers:
            stop()
            shell = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "QWEN_"))}
            own = {"SERVER_MODE": "local", "HOME": str(tmp_path), "NO_PROXY": "*", "OMP_WAIT_POLICY": "PASSIVE"}
            workers[key] = WorkerProcess({**shell, **models, **env, "QWEN_WORKER_VERSION": "v1", **own})
        return workers[key].answer(fields)

    def stop():
        while workers:
            workers.popitem()[1].stop()

    yield Build(lambda fields, env: pool.submit(answer, fields, env))
    stop()


@pytest.fixture
def build(models, pool):
    """build(**variables): one whose worker lives in this process, with the endpoint's environment and these over it."""
    workers = {}

    def build_of(**variables):
        def answer(fields, env):
            own = {**models, **env, "QWEN_WORKER_VERSION": "v1", **variables}
            key = tuple(sorted(own.items()))
            if key not in workers:
                workers[key] = runpod_handler.Worker(worker_settings(own))
            return reply_of(run(workers[key], fields))

        return Build(lambda fields, env: pool.submit(answer, fields, env))

    return build_of


def test_a_real_worker_is_proved_with_real_pictures(runpod, command, process_build, tmp_path):
    endpoint = runpod.add()
    runpod.builds[NEW] = process_build
    code, text = command(*SHIP, *SMALL, clock=SHORT_PAUSES)
    assert code == 0, text
    assert endpoint["image"] == NEW and endpoint["env"]["QWEN_FALLBACK"] == "allow"
    for name in ("generate", "edit"):
        with Image.open(tmp_path / f"out/proof-ep1-{name}.png") as picture:
            assert picture.size == (256, 256)


def test_a_real_worker_draws_with_what_a_pod_has_laid_onto_its_volume(
    runpod, command, build, tiny, web, tmp_path, monkeypatch
):
    """The endpoint names the released models; the worker finds them below the mount, and asks no hub for anything."""
    names = ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")
    hub = LocalHub(dict(zip(names, (tiny / "generate", tiny / "edit"), strict=True)))
    runpod.storage.pod_env["HF_ENDPOINT"] = web(hub)
    runpod.storage.add_volume()
    monkeypatch.setattr(fill, "LOOK_SECONDS", 0.05)
    code, text = command("volume", "fill", "qwen-weights", "--yes", clock=SHORT_PAUSES)
    assert code == 0, text
    hub.paths.clear()
    monkeypatch.setenv("HF_ENDPOINT", runpod.storage.pod_env["HF_ENDPOINT"])
    mounted = str(runpod.storage.mount("vol1") / "models")
    models = dict(zip(("QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL"), names, strict=True))
    runpod.builds[NEW] = build(QWEN_MODEL_ROOTS=mounted, **models)
    code, text = command(*SHIP, *SMALL, "--volume", "qwen-weights", clock=SHORT_PAUSES)
    assert code == 0, text
    drawn = [job["output"]["metadata"] for job in runpod.jobs.values() if job["input"]["task"] != "health"]
    assert [(one["model"], one["revision"]) for one in drawn] == [(name, hub.commit(name)) for name in names]
    assert not hub.paths


def test_a_corrupt_shard_is_rolled_back(runpod, command, build, tiny, tmp_path):
    folder = tmp_path / "corrupt"
    shutil.copytree(tiny / "edit", folder)
    (shard,) = (folder / "transformer").glob("*.safetensors")
    shard.write_bytes(b"\xff" * 64 + shard.read_bytes()[64:])
    text = rolled_back(runpod, command, build(QWEN_EDIT_MODEL=str(folder)), "--tasks", "edit")
    assert "edit: the job is FAILED: model_unavailable" in text and "transformer" in text


def test_a_worker_of_gradients_is_rolled_back(runpod, command, build):
    # Its entry point sets the variable, whatever the endpoint says.
    text = rolled_back(runpod, command, build(QWEN_FALLBACK="force"))
    assert "generate: backend must be qwen-image, not pil-fallback: QWEN_FALLBACK=force" in text


def rolled_back(runpod, command, build, *arguments):
    endpoint = runpod.add()
    before = settable_fields(dict(endpoint))
    runpod.builds[NEW] = build
    code, text = command(*SHIP, *SMALL, *arguments, clock=SHORT_PAUSES)
    assert code == 1 and "verified field by field" in text, text
    assert settable_fields(endpoint) == before
    return text
