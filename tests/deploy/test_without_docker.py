"""From an account to pictures without docker: a volume is made, filled by a Pod, mounted by an endpoint, and deleted.

The Pods are processes that run what the helper sent them, against a hub on loopback; the worker's own code finds what
they have laid down.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from qwen_deploy import fill
from qwen_deploy.runpod.client import Clock
from qwen_worker.checkpoints import search

from ..conftest import ROOT
from ..support.local_hub import LocalHub, sha256
from ..support.patience import wait_until
from .conftest import job_tasks, only
from .fake_runpod import KEY, Build, draws

MODELS = ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")
IMAGE = "ghcr.io/owner/qwen-image:v1"
FILL = ("volume", "fill", "qwen-weights", "--yes")
REAL = Clock(time.monotonic, lambda seconds: time.sleep(min(seconds, 0.05)))


@pytest.fixture
def hub(web, runpod):
    """The tiny checkpoints under the names of the released ones; Pods reach it."""
    kinds = zip(MODELS, ("generate", "edit"), strict=True)
    served = LocalHub({name: ROOT / "models/tiny-qwen-image" / kind for name, kind in kinds})
    runpod.storage.pod_env["HF_ENDPOINT"] = web(served)
    return served


@pytest.fixture
def large_file(hub, tmp_path):
    """A file of 40 MB that is fetched with the first model: the hub's client writes what has come by 10 MB."""
    folder = tmp_path / "generate"
    shutil.copytree(hub.repos[MODELS[0]], folder)
    hub.repos[MODELS[0]] = folder
    file = folder / "extra/model.safetensors"
    file.parent.mkdir()
    file.write_bytes(os.urandom(40_000_000))
    return file


@pytest.fixture
def run(command, monkeypatch):
    """The command in real time, which the Pods need, with short pauses."""
    monkeypatch.setattr(fill, "LOOK_SECONDS", 0.05)
    return lambda *arguments, **more: command(*arguments, clock=REAL, **more)


def fetched(runpod, volume="vol1"):
    return [file for file in runpod.storage.mount(volume).glob("weights/00/*") if file.is_file()]


def draws_from(volume):
    """Workers that mount the folder: they draw with a model that the worker's own search finds whole below it."""

    def answer(fields, env):
        name = env.get("QWEN_EDIT_MODEL", MODELS[1]) if fields["task"] == "edit" else MODELS[0]
        found = search.find(name, [volume / "models"])
        if fields["task"] != "health" and found is None:
            return {"success": False, "error": f"model_unavailable: {name}"}
        reply = draws("v1")(fields, env)
        if found and "metadata" in reply:
            reply["metadata"]["revision"] = found.revision
        return reply

    return answer


def stop_at(runpod, enough):
    """Ctrl-C at the first look at a Pod at which `enough()`."""

    def look(method, path):
        if method == "GET" and path.startswith("/v2/pods/") and not path.endswith("/logs") and enough():
            runpod.on_request = lambda method, path: None
            os.kill(os.getpid(), signal.SIGINT)

    runpod.on_request = look


def test_a_deployment_without_docker_from_nothing_to_pictures_and_back(runpod, run, hub, large_file):
    code, text = run("volume", "create", "qwen-weights", "--yes")
    assert code == 0 and "110 GB in EU-RO-1" in text and "$7.70 a month" in text, text

    hub.pause = 0.05  # the first run is stopped in the middle of the large file
    part = runpod.storage.mount("vol1") / "partial" / sha256(large_file)
    stop_at(runpod, lambda: part.exists() and part.stat().st_size)
    code, text = run(*FILL)
    assert code == 130 and "is deleted; the volume keeps what was fetched" in text and not runpod.storage.pods, text
    had = part.stat().st_size
    assert 0 < had < 40_000_000 and not (runpod.storage.mount("vol1") / "models").exists()

    hub.pause = 0
    hub.sent.clear()
    code, text = run(*FILL)
    assert code == 0 and "every hash as the hub states it" in text and not runpod.storage.pods, text
    assert "about 16 min" in text and "2 vCPUs of cpu3c at $0.06/h" in text
    # A piece of the first run may have been on its way still.
    assert 40_000_000 - had <= hub.sent[part.name] < 40_000_000, "the large file was not gone on with"
    large = {sha256(file) for name in MODELS for file in hub.files(name).values() if file.suffix == ".safetensors"}
    assert large < {file.name for file in fetched(runpod)} and not part.exists()

    runpod.builds[IMAGE] = Build(draws_from(runpod.storage.mount("vol1")))
    code, text = run("--image", IMAGE, "--volume", "qwen-weights", "--yes")
    assert code == 0, text
    endpoint = only(runpod)
    assert endpoint["networkVolumes"] == ["vol1"] and endpoint["dataCenterIds"] == ["EU-RO-1"]
    assert endpoint["image"] == IMAGE and job_tasks(runpod) == ["health", "generate", "edit", "health"]
    revisions = {
        job["output"]["metadata"]["revision"] for job in runpod.jobs.values() if job["input"]["task"] != "health"
    }
    assert revisions == {hub.commit(name) for name in MODELS}

    code, text = run("volume", "delete", "qwen-weights", "--yes")
    assert code == 1 and f"mounted by endpoint qwen-image ({endpoint['id']})" in text and runpod.storage.volumes
    assert run("delete", "--name", "qwen-image", "--yes")[0] == 0
    assert run("volume", "delete", "qwen-weights", "--yes")[0] == 0 and not runpod.storage.volumes


def test_a_helper_that_was_killed_leaves_a_pod_with_which_the_next_run_goes_on(runpod, run, hub, large_file, tmp_path):
    runpod.storage.add_volume()
    hub.pause = 0.2
    environment = os.environ | {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    arguments = [sys.executable, "deploy_qwen.py", *FILL, "--state", str(tmp_path)]
    helper = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: runpod.storage.mount("vol1").joinpath("partial").exists(), helper.pid)
    helper.kill()
    helper.wait()
    (left,) = runpod.storage.pods
    code, text = run("volume", "list")
    assert code == 0 and f"Pod {left} of a `volume fill qwen-weights` is still there, running, at $0.06/h" in text
    hub.pause = 0
    code, text = run("volume", "fill", "qwen-weights")  # nothing new is paid for, so nothing is asked
    assert code == 0 and f"Pod {left} of an earlier run does that already" in text, text
    assert not runpod.storage.pods and len(runpod.writes_to("/v2/pods")) == 2  # made once, deleted once


def test_a_pod_of_another_fill_is_deleted_before_a_new_one_is_made(runpod, run, hub):
    runpod.storage.add_volume()
    body = {"name": "qwen-fill-vol1", "image": "python:3.12", "cpu": {"id": "cpu3c", "vcpuCount": 2},
            "args": "python -c pass", "env": {"QWEN_FILL_MODELS": "Org/X"}, "dataCenterIds": ["US-KS-2"]}  # fmt: skip
    old = runpod.storage.create_pod(body)["id"]
    code, text = run(*FILL)
    assert code == 0 and f"Pod {old} of an earlier run was still there" in text and not runpod.storage.pods, text
    assert [method for method, *_ in runpod.writes_to("/v2/pods")] == ["DELETE", "POST", "DELETE"]


def test_a_pod_that_nobody_follows_deletes_itself_at_its_end(runpod, hub):
    from qwen_deploy.fill_pod import Place, pod_body

    volume = runpod.storage.add_volume()
    place = Place("", 0.06, {"cpu": {"id": "cpu3c", "vcpuCount": 2}})
    env = {"QWEN_FILL_HOLD": "0.2", "RUNPOD_API_KEY": KEY}
    body = pod_body(volume, MODELS, "python:3.12", place, env, runpod.url)
    pod = runpod.storage.create_pod(json.loads(json.dumps(body)))
    process = runpod.storage.running[pod["id"]].process
    wait_until(lambda: not runpod.storage.pods, process.pid if process.poll() is None else None)
    assert search.find(MODELS[0], [runpod.storage.mount(volume["id"]) / "models"])


def test_a_full_volume_is_said_so_with_the_way_out(runpod, run, hub):
    runpod.storage.add_volume()
    partial = runpod.storage.mount("vol1") / "partial"
    partial.mkdir()
    for file in hub.files(MODELS[0]).values():
        if file.suffix == ".safetensors":
            (partial / sha256(file)).symlink_to("/dev/full")  # which takes no byte, as a volume at its limit
    code, text = run(*FILL)
    assert code == 1 and "full" in text and "`volume create NAME --size GB` makes it larger" in text, text
    assert not runpod.storage.pods and not (runpod.storage.mount("vol1") / "models").exists()


def test_a_volume_that_cannot_be_written_is_said_so(runpod, run, hub):
    runpod.storage.add_volume()
    (runpod.storage.mount("vol1") / "weights").write_text("a file where the folder would be")
    code, text = run(*FILL)
    assert code == 1 and "the volume cannot be written: " in text and not runpod.storage.pods, text


def test_bytes_that_are_spoiled_on_the_volume_are_fetched_again(runpod, run, hub):
    runpod.storage.add_volume()
    assert run(*FILL)[0] == 0
    spoiled = max(fetched(runpod), key=lambda file: file.stat().st_size)
    whole = spoiled.read_bytes()
    spoiled.write_bytes(bytes(len(whole)))
    hub.sent.clear()
    assert run(*FILL)[0] == 0
    assert spoiled.read_bytes() == whole and hub.sent == {spoiled.name: len(whole)}


def test_a_model_that_the_hub_refuses_ends_the_pod_with_its_reason(runpod, run, hub):
    runpod.storage.add_volume()
    hub.gated.add(MODELS[0])
    code, text = run(*FILL)
    assert code == 1 and "gated on the hub" in text and "--env HF_TOKEN" in text and not runpod.storage.pods, text
