"""The API key is nowhere but in the requests to RunPod."""

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

from ..conftest import ROOT, respond
from .conftest import NEW, OLD, SHIP, only
from .fake_runpod import KEY, Build, Fault, stands_in

# `deploy_qwen.py` that does not wait.
PROGRAM = """
import sys, deploy_qwen
from qwen_deploy.runpod.client import Clock
sys.exit(deploy_qwen.main(clock=Clock(pause=lambda seconds: None)))
"""


def test_the_key_is_in_no_output_file_or_process_list(runpod, tmp_path, docker):
    runpod.add(workers=0, env={"LEAK": KEY, "QWEN_FALLBACK": "forbid"})
    runpod.builds[NEW] = Build(stands_in("v1"))
    environment = {**os.environ, "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url, "XDG_STATE_HOME": str(tmp_path)}
    seen = []

    def look(method, path):
        for folder in os.listdir("/proc"):
            if folder.isdigit():
                with contextlib.suppress(OSError):  # gone meanwhile
                    seen.append(Path(f"/proc/{folder}/cmdline").read_bytes())

    runpod.on_request = look
    command = [sys.executable, "-c", PROGRAM, "--registry", "docker.io/you", "--tag", "v1", "--yes"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Rolled back" in done.stdout, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert any(b"deploy_qwen" in line for line in seen) and not any(KEY.encode() in line for line in seen)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("qwen-deploy" in str(file) for file in files)
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    assert only(runpod)["env"]["LEAK"] == KEY  # and the rollback has put it back
    assert docker.calls() and not any("RUNPOD_API_KEY" in call["environment"] for call in docker.calls())


def test_a_worker_that_prints_the_key_does_not_have_it_repeated(runpod, command):
    runpod.builds[OLD].log = (f"the worker prints {KEY}",)
    runpod.add()
    code, text = command("logs", "--endpoint-id", "ep1")
    assert code == 0 and "the worker prints ***" in text
    runpod.builds[NEW] = Build(crashes=True, log=(f"the worker prints {KEY}",))
    code, text = command(*SHIP)
    assert code == 1 and "Crash loop" in text and "the worker prints ***" in text


def test_saved_configurations_are_readable_by_the_operator_alone(runpod, command):
    runpod.add()
    command(*SHIP)
    (file,) = (runpod.state / "ep1").glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_key_goes_to_runpod_alone(runpod, command):
    endpoint = runpod.add(NEW)
    endpoint["requestUrls"]["run"] = "https://jobs.example.com/run"
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 2 and "not to https://jobs.example.com" in text


def test_a_redirect_is_not_followed(runpod, command, web):
    reached = []
    elsewhere = web(lambda handler: reached.append(handler.path) or respond(handler, b"{}"))
    runpod.faults = [Fault("GET", "/v2/serverless$", 302, {"Location": elsewhere})]
    code, text = command(*SHIP)
    assert code == 1 and "RunPod answered the list of endpoints with 302" in text and not reached
