"""`deploy_qwen.py` with real workers behind the queue: processes of `runpod_handler.py` on the tiny checkpoint."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import requests
from PIL import Image

from examples.quickstart import free_port

from ..conftest import ROOT
from .conftest import NEW, SHIP, configuration
from .fake_runpod import Build

PATIENCE = 120  # seconds; a process imports torch before its first picture
SMALL = ("--test-size", "256", "--test-steps", "2", "--wait", str(4 * PATIENCE))


@pytest.fixture
def image(tiny, tmp_path):
    """image(**variables): the answers of a worker process that has the endpoint's environment and these over it.

    As on RunPod, a change of the environment brings a new process.
    """
    processes = {}

    def stop():
        while processes:
            _, (process, _) = processes.popitem()
            process.terminate()
            process.wait()

    def address_of(variables):
        key = tuple(sorted(variables.items()))
        if key not in processes:
            stop()
            port = free_port()
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "QWEN_"))}
            process = subprocess.Popen(
                [sys.executable, "runpod_handler.py", "--rp_api_port", str(port)],
                cwd=ROOT, env=kept | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            processes[key] = process, f"http://127.0.0.1:{port}/runsync"
        return processes[key][1]

    def build(**variables):
        models = {"QWEN_IMAGE_MODEL": str(tiny / "generate"), "QWEN_EDIT_MODEL": str(tiny / "edit")}
        own = {"SERVER_MODE": "local", "HOME": str(tmp_path), "NO_PROXY": "*"}

        def answer(fields, env):
            body = posted(address_of({**models, **env, "QWEN_WORKER_VERSION": "v1", **variables, **own}), fields)
            return body.get("output") or {"error": body["error"]}

        return Build(answer)

    yield build
    stop()


def posted(address, fields):
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return requests.post(address, json={"input": fields}, timeout=PATIENCE).json()
        except requests.ConnectionError:
            assert time.monotonic() < ends, "the worker's API did not come up"
            time.sleep(0.2)


def test_a_real_worker_is_proved_with_real_pictures(runpod, command, image, tmp_path):
    endpoint = runpod.add()
    runpod.builds[NEW] = image()
    code, text = command(*SHIP, *SMALL)
    assert code == 0, text
    assert endpoint["image"] == NEW and endpoint["env"]["QWEN_FALLBACK"] == "allow"
    for name in ("generate", "edit"):
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.size == (256, 256)


def test_a_corrupt_shard_is_rolled_back(runpod, command, image, tiny, tmp_path):
    folder = tmp_path / "corrupt"
    shutil.copytree(tiny / "edit", folder)
    (shard,) = (folder / "transformer").glob("*.safetensors")
    shard.write_bytes(b"\xff" * 64 + shard.read_bytes()[64:])
    text = rolled_back(runpod, command, image(QWEN_EDIT_MODEL=str(folder)))
    assert "edit: the job is FAILED: model_unavailable" in text and "transformer" in text


def test_a_worker_of_gradients_is_rolled_back(runpod, command, image):
    # Its entry point sets the variable, whatever the endpoint says.
    text = rolled_back(runpod, command, image(QWEN_FALLBACK="force"))
    assert "generate: backend must be qwen-image, not pil-fallback: QWEN_FALLBACK=force" in text


def rolled_back(runpod, command, build):
    endpoint = runpod.add()
    before = configuration(dict(endpoint))
    runpod.builds[NEW] = build
    code, text = command(*SHIP, *SMALL)
    assert code == 1 and "verified field by field" in text, text
    assert configuration(endpoint) == before
    return text
