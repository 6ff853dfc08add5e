"""What an operator asks of an endpoint, each answered by one command: its output is the answer, nothing else is read.

The commands are given as a person types them.
"""

import json
import re

import pytest

from .conftest import NEW, OLD, SHIP, settable_fields
from .fake_runpod import Build, draws

ASK = "--name", "qwen-image"


@pytest.fixture
def served(runpod, command):
    """An endpoint that was deployed twice, drew a picture and was billed for it."""
    endpoint = runpod.add()
    assert command(*SHIP)[0] == 0
    assert command("send", *ASK, "a fox")[0] == 0
    runpod.bills.add("serverless", endpoint["id"], 1, 1.25, 0, 0.05, 0.1)
    runpod.bills.add("network-volumes", "vol_abc", 1, 0.23, 0)
    return endpoint


def answer(command, *arguments):
    code, text = command(*arguments)
    assert code == 0, text
    return text


def test_what_will_a_picture_cost(served, command):
    text = answer(command, "cost", *ASK)
    assert re.search(r"ADA_24 +\$1\.12", text) and "HOPPER_141" in text  # every pool with its price
    assert re.search(r"ADA_24 .*computed", text) and "--gpu auto takes HOPPER_141" in text


@pytest.mark.parametrize(("build", "reason"), [
    (Build(early_states=("THROTTLED",) * 30), "in queue · throttled: no card is free for 1 worker · 30 s"),
    (Build(early_states=("INITIALIZING",) * 30, start_log=("create container",) * 30),
     "in queue · a worker starts: RunPod prepares its host · 30 s"),
    (Build(draws("v1"), progress=({"stage": "drawing", "step": 12, "total": 50, "seconds_left": 14.6},)),
     "in progress · drawing, step 12/50, 15 s left"),
])  # fmt: skip
def test_why_is_my_job_waiting(runpod, command, build, reason):
    runpod.add(NEW, workers=0)
    runpod.builds[NEW] = build
    assert reason in answer(command, "send", *ASK, "a fox")


def test_which_card_draws(served, command):
    text = answer(command, "status", *ASK)
    assert re.search(r"gpu.pools +ADA_24", text) and re.search(r"idle +RTX 4090 +US-KS-2", text)


def test_what_is_deployed(served, command):
    text = answer(command, "status", *ASK)
    assert re.search(rf"image +{NEW}", text) and re.search(r"workers.max +5", text) and "hf_secret" not in text


def test_what_did_i_spend(served, command):
    text = answer(command, "spent")
    assert "$1.63 for endpoints and volumes in 30 days" in text
    assert re.search(r"qwen-image +ep1 +1\.25 +0\.05 +0\.10 +1\.40", text) and re.search(r"vol_abc +0\.23", text)
    text = answer(command, "spent", *ASK)
    assert "$1.40 in 30 days" in text and re.search(r"2026-06-29 +1\.25", text) and "volume vol_abc: $0.23" in text


def test_how_do_i_stop_paying(served, command, runpod):
    text = answer(command, "pause", *ASK, "--yes")
    assert served["workers"]["max"] == 0 and not runpod.workers["ep1"]
    assert "is paused" in text and "still paid for: volume vol_abc" in text
    again = re.search(r"go on: python deploy_qwen.py (.*)", text).group(1).split()
    answer(command, *again, "--yes")
    assert served["workers"] == {"min": 1, "max": 5, "idleTimeout": 60}
    assert command("send", *ASK, "a fox")[0] == 0


def test_how_do_i_go_back(served, command):
    listed = answer(command, "rollback", *ASK, "--list")
    assert OLD.removeprefix("docker.io/") in listed
    text = answer(command, "rollback", *ASK, "--yes")
    assert served["image"] == OLD and "health: version v0 answers" in text


def test_what_is_running_and_costs_money_now(served, command, runpod):
    runpod.add(OLD, workers=2, name="another", networkVolumes=[])
    text = answer(command, "list")
    assert re.search(r"qwen-image +ep1 +ADA_24 +1 of 5 +1\.12 +v1", text)
    assert re.search(r"another +ep\d+ +ADA_24 +2 of 5 +2\.24 +v0", text)


def test_is_it_healthy(served, command, runpod):
    assert "Healthy: nothing keeps its jobs from being done" in answer(command, "status", *ASK)
    health = json.loads(answer(command, "send", *ASK))  # without a prompt: the worker's own health
    assert health["status"] == "healthy"
    runpod.builds[NEW] = Build(crashes=True, log=("ModuleNotFoundError: No module named 'diffusers'",))
    for worker in runpod.workers["ep1"]:
        worker.status = "INITIALIZING"
        worker.starts = 3
    text = answer(command, "status", *ASK)
    assert "Crash loop: worker" in text and "No module named 'diffusers'" in text and "Healthy" not in text


def test_which_version_answers(served, command):
    assert json.loads(answer(command, "send", *ASK))["worker_version"] == "v1"
    assert re.search(r"idle +RTX 4090 +US-KS-2 +v1", answer(command, "status", *ASK))


def test_where_are_the_logs(served, command):
    assert "container Worker ready." in re.sub(" +", " ", answer(command, "logs", *ASK))
    assert re.search(r"its logs +(logs --endpoint-id ep1)", answer(command, "status", *ASK))


def test_how_do_i_change_the_card(served, command):
    """By the command that `status` gives, in which only the pool is left to choose."""
    line = re.search(r"another card +(.*)", answer(command, "status", *ASK)).group(1)
    before = json.loads(json.dumps(settable_fields(served)))
    answer(command, *line.replace("POOL", "AMPERE_80").split(), "--yes")
    assert served["gpu"].pop("pools") == ["AMPERE_80"] and before["gpu"].pop("pools") == ["ADA_24"]
    assert served["gpu"].pop("excludedTypes") == [] and before["gpu"].pop("excludedTypes")  # they were of the old pool
    assert settable_fields(served) == before


def test_where_is_it_in_the_console(served, command, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    text = answer(command, "open", *ASK)
    assert text.strip() == "https://console.runpod.io/serverless/user/endpoint/ep1"


def test_how_do_i_get_rid_of_it(served, command, runpod):
    other = runpod.add(OLD, name="another")
    text = answer(command, "delete", *ASK, "--yes")
    assert "Delete endpoint qwen-image (ep1)" in text and "stays: volume vol_abc" in text
    assert list(runpod.endpoints) == [other["id"]]
