"""What does not serve is rolled back, field by field; so is what the operator interrupts."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import deploy_qwen

from ..conftest import ROOT
from ..support.patience import Patience
from .conftest import NEW, OLD, SHIP, only, settable_fields
from .fake_runpod import KEY, Build, Fault, draws, stands_in


def rolled_back(runpod, command, *arguments):
    """The text of a deployment that must fail and leave the old endpoint as it was, field by field."""
    endpoint = runpod.add()
    before = json.loads(json.dumps(settable_fields(endpoint)))
    asked = ("--gpu", "AMPERE_80", "--workers-min", "2", "--disk", "99", "--volume", "", "--data-centers", "")
    changed = ("--env", "EXTRA=1", "--unset-env", "HF_TOKEN", "--flashboot", "flashboot", "--idle-timeout", "30")
    code, text = command(*SHIP, *asked, *changed, *arguments)
    assert code == 1 and "verified field by field" in text, text
    assert settable_fields(endpoint) == before
    assert len(runpod.writes_to("/v2")) >= 2  # it was changed, and changed back
    return text


def test_a_worker_that_stands_in_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(stands_in("v1"))
    assert "backend must be qwen-image, not pil-fallback: no weights" in rolled_back(runpod, command)


def test_another_build_than_the_deployed_one_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(draws("v0.9"))
    text = rolled_back(runpod, command)
    assert "worker_version must be v1, not v0.9" in text


def test_a_picture_by_another_build_is_rolled_back(runpod, command):
    def answer(fields, env):
        return draws("v1" if fields["task"] == "health" else "v0.9")(fields, env)

    runpod.builds[NEW] = Build(answer)
    assert "generate: worker_version must be v1, not v0.9" in rolled_back(runpod, command)


def test_a_model_that_does_not_load_is_rolled_back(runpod, command):
    def answer(fields, env):
        if fields["task"] == "edit":
            return {"error": "model_unavailable: transformer/model-2.safetensors is corrupt", "success": False}
        return draws("v1")(fields, env)

    runpod.builds[NEW] = Build(answer)
    assert "edit: the job is FAILED: model_unavailable: transformer/model-2" in rolled_back(runpod, command)


@pytest.mark.parametrize("image", ["bm90IGEgcGljdHVyZQ==", "%%%", "", None])
def test_a_reply_without_a_picture_is_rolled_back(runpod, command, image):
    def answer(fields, env):
        return draws("v1")(fields, env) | ({"image": image} if fields["task"] == "generate" else {})

    runpod.builds[NEW] = Build(answer)
    assert "The reply" in rolled_back(runpod, command)


def test_a_crash_loop_is_found_in_the_logs_and_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(crashes=True, log=("Traceback ...", "QWEN_FALLBACK=forbid: no model can be served"))
    text = rolled_back(runpod, command)
    assert "Crash loop: worker" in text and "QWEN_FALLBACK=forbid: no model can be served" in text


def test_workers_that_end_one_after_the_other_are_rolled_back(runpod, command, monkeypatch):
    list_workers, looks = runpod.list_workers, itertools.count()

    def flicker(endpoint_id):
        runpod.builds[NEW].vanishes = next(looks) % 2 == 0  # seen at one look, gone at the next
        return list_workers(endpoint_id)

    monkeypatch.setattr(runpod, "list_workers", flicker)
    runpod.builds[NEW] = Build(state="INITIALIZING")
    assert "new workers ended before they were ready" in rolled_back(runpod, command)


def test_an_image_that_cannot_be_pulled_is_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(unpullable=True)
    assert "The image cannot be pulled: error pulling image" in rolled_back(runpod, command)


def test_workers_that_get_no_card_are_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(state="THROTTLED")
    assert "no card for the workers: 1 throttled for 10 s" in rolled_back(runpod, command, "--capacity-wait", "10")


def test_unhealthy_workers_are_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(state="UNHEALTHY")
    assert "is unhealthy for 120 s" in rolled_back(runpod, command)


def test_workers_that_never_come_up_are_rolled_back(runpod, command):
    runpod.builds[NEW] = Build(state="INITIALIZING")
    assert "do not serve after 61 s" in rolled_back(runpod, command, "--wait", "61")


def test_a_field_that_runpod_does_not_keep_is_rolled_back(runpod, command):
    runpod.ignores = {"flashboot"}
    endpoint = runpod.add()
    code, text = command(*SHIP, "--flashboot", "priority_flashboot")
    assert code == 1 and "flashboot is OFF, not PRIORITY_FLASHBOOT" in text and endpoint["image"] == OLD


def test_the_jobs_of_a_failed_proof_are_cancelled(runpod, command):
    runpod.builds[NEW] = Build(crashes=True)
    runpod.old_ticks = 0  # no old worker is left to take the job
    rolled_back(runpod, command)
    assert [job["status"] for job in runpod.jobs.values()][:1] == ["CANCELLED"]


def test_a_new_endpoint_that_does_not_serve_is_left_without_workers(runpod, command):
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command(*SHIP)
    assert code == 1 and "it costs nothing" in text
    assert only(runpod)["workers"] | {"idleTimeout": 0} == {"min": 0, "max": 0, "idleTimeout": 0}


@pytest.mark.parametrize("asked", [None, "force"])
def test_a_new_endpoint_without_workers_is_mended_as_it_says(runpod, command, asked):
    own = ("--env", f"QWEN_FALLBACK={asked}") if asked else ()
    runpod.builds[NEW] = Build(crashes=True)
    code, text = command(*SHIP, *own)
    assert code == 1 and only(runpod)["env"].get("QWEN_FALLBACK") == asked
    runpod.builds[NEW] = Build(draws("v1"))
    again = re.search(r"run this again with (--workers-max \d+)", text).group(1).split()
    code, text = command(*SHIP, *again)
    assert code == 0, text
    assert only(runpod)["workers"]["max"] == 3 and only(runpod)["env"].get("QWEN_FALLBACK") == asked


def test_a_failed_check_of_an_unchanged_endpoint_changes_nothing(runpod, command):
    runpod.add(NEW, env={})
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command(*SHIP)
    assert code == 1 and "nothing to roll back" in text and not runpod.writes_to("/v2")


def interrupt_at(runpod, method, path, times):
    """Ctrl-C as the kernel does it, in the middle of that request: the `times`-th of its kind."""
    count = itertools.count(1)

    def interrupt(now, where):
        if now == method and path in where and next(count) == times:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    runpod.on_request = interrupt


@pytest.mark.parametrize("method, path, times", [
    ("GET", "/releases", 1), ("PATCH", "/serverless/", 1), ("POST", "/run", 1), ("GET", "/status/", 1),
    ("GET", "/workers", 3), ("POST", "/run", 2), ("GET", "/status/", 5), ("PATCH", "/serverless/", 2),
])  # fmt: skip
def test_ctrl_c_in_any_phase_leaves_the_old_version(runpod, command, method, path, times):
    endpoint = runpod.add()
    before = json.loads(json.dumps(settable_fields(endpoint)))
    interrupt_at(runpod, method, path, times)
    code, text = command(*SHIP)
    assert code == 130 and "Interrupted" in text
    assert settable_fields(endpoint) == before
    assert all(job["status"] != "IN_QUEUE" for job in runpod.jobs.values())


def test_a_rollback_that_fails_says_what_is_where(runpod, command):
    runpod.add()
    runpod.builds[NEW] = Build(stands_in("v1"))
    runpod.on_request = lambda method, path: (
        runpod.faults.append(Fault("PATCH", "/serverless/", 403)) if path.endswith("/run") else None
    )
    code, text = command(*SHIP)
    assert code == 1 and "Rolling back failed: RUNPOD_API_KEY may not do this" in text
    again = re.search(r"deploy_qwen.py (rollback --endpoint-id ep1 --to \S+)", text).group(1).split()
    runpod.faults, runpod.on_request = [], lambda method, path: None
    assert command(*again, "--yes")[0] == 0 and only(runpod)["image"] == OLD


@pytest.mark.parametrize("method, path", [("POST", "/serverless"), ("GET", "/workers"), ("POST", "/run")])
def test_ctrl_c_leaves_a_new_endpoint_without_workers(runpod, command, method, path):
    interrupt_at(runpod, method, path, 1)
    code, text = command(*SHIP)
    assert code == 130 and "it costs nothing" in text and only(runpod)["workers"]["max"] == 0


def test_a_second_ctrl_c_says_what_is_where(runpod, command):
    runpod.add()
    runpod.builds[NEW] = Build(stands_in("v1"))
    interrupt_at(runpod, "PATCH", "/serverless/", 2)  # the one that rolls back
    code, text = command(*SHIP)
    assert code == 1 and "Rolling back failed: interrupted" in text
    assert "Endpoint ep1 has the new configuration or the old one" in text and "--to " in text


def test_sigterm_rolls_back_too(runpod, tmp_path):
    endpoint = runpod.add()
    runpod.builds[NEW] = Build(state="INITIALIZING")
    environment = {**os.environ, "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url, "XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "deploy_qwen.py", *SHIP], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        patience = Patience(process.pid)
        while process.poll() is None:
            patience.check()
            if runpod.writes_to("/v2"):
                process.terminate()
                break
            time.sleep(0.05)
        while process.poll() is None:
            patience.check()
            time.sleep(0.05)
        text = process.stdout.read()
    assert process.returncode == 130 and "again, verified" in text and endpoint["image"] == OLD


def test_an_update_that_is_refused_leaves_everything_as_it_was(runpod, command):
    runpod.add()
    runpod.faults = [Fault("PATCH", "/serverless/", 402)]
    code, text = command(*SHIP)
    assert code == 1 and "balance" in text and "is as it was, verified field by field" in text
    assert len(runpod.writes) == 1


def test_a_fault_of_the_helper_itself_is_rolled_back_too(runpod, command, monkeypatch):
    endpoint = runpod.add()
    monkeypatch.setattr(deploy_qwen, "prove", {}.pop)  # which raises
    with pytest.raises(TypeError):
        command(*SHIP)
    assert endpoint["image"] == OLD and len(runpod.writes_to("/v2")) == 2


def test_an_endpoint_that_was_changed_during_the_build_is_left_alone(runpod, command, docker):
    endpoint = runpod.add()
    looks = itertools.count(1)

    def meddle(method, path):
        if path == "/v2/serverless/ep1" and next(looks) == 1:
            endpoint["timeout"] = 123_000

    runpod.on_request = meddle
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes")
    assert code == 1 and "was changed since the plan (timeout)" in text
    assert not runpod.writes and endpoint["timeout"] == 123_000


def test_ctrl_c_during_the_rollback_command_says_what_is_where(runpod, command):
    runpod.add()
    assert command(*SHIP)[0] == 0
    interrupt_at(runpod, "PATCH", "/serverless/", 1)
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes")
    assert code == 1 and "Rolling back failed: interrupted" in text and "has the new configuration or the old" in text


def test_ctrl_c_during_the_build_leaves_the_endpoint_alone(runpod, command, docker):
    runpod.add()
    docker.install("docker", failing=["build"])
    tool = docker.log.parent / "bin/docker"
    tool.write_text(
        tool.read_text().replace("sys.exit(", "'build' in sys.argv and os.kill(os.getppid(), 2)\nsys.exit(")
    )
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes")
    assert code == 130 and "No endpoint was being changed" in text and not runpod.writes
