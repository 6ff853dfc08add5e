"""`list`, `pause`, `resume`, `delete`, `open`, and how every command finds its endpoint."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import deploy_qwen
from qwen_deploy.options import COMMANDS, command_parser
from qwen_deploy.runpod.client import Clock

from ..conftest import ROOT
from .conftest import NEW, OLD, SHIP, settable_fields
from .fake_runpod import KEY, Build, Fault, draws


def takes_endpoint(name):
    return "--endpoint-id" in command_parser(name).format_help()


TARGETED = [name for name in COMMANDS if name not in ("deploy", "delete") and takes_endpoint(name)]
WIDE = "docker.io/somebody/artyx-qwen-server:1a2b3c4d5e6f-12345678"


def words_for(name):
    """Arguments with which a command does its work without asking."""
    return {"rollback": ["--yes"], "pause": ["--yes"], "resume": ["--yes"], "delete": ["--yes"]}.get(name, [])


@pytest.mark.parametrize("name", [*TARGETED, "delete"])
def test_two_endpoints_of_one_name_are_told_with_their_ids(runpod, command, name):
    runpod.add()
    runpod.add()
    code, text = command(name, "--name", "qwen-image", *words_for(name))
    assert code == 2 and "2 endpoints are named qwen-image: ep1, ep3" in text and not runpod.writes


@pytest.mark.parametrize("name", [*TARGETED, "delete"])
def test_a_name_that_no_endpoint_has_is_told_with_those_that_there_are(runpod, command, name):
    runpod.add(name="another -fb")
    code, text = command(name, "--name", "qwen-image", *words_for(name))
    assert code == 1 and "No endpoint is named qwen-image. There are: another (ep1)." in text and not runpod.writes


@pytest.mark.parametrize("name", sorted(set(TARGETED) - {"cost", "spent"}))
def test_without_a_name_the_only_endpoint_is_meant_and_several_are_listed(runpod, command, name):
    code, text = command(name, *words_for(name))
    assert code == 1 and "This account has no endpoint" in text
    runpod.add(NEW)
    assert "There are:" not in command(name, *words_for(name))[1]
    sent = len(runpod.writes)
    runpod.add(OLD, name="another")
    code, text = command(name, *words_for(name))
    assert code == 2 and "There are: qwen-image (ep1), another (ep" in text and len(runpod.writes) == sent


def test_a_name_of_an_endpoint_with_flashboot_is_found_as_it_was_given(runpod, command):
    runpod.add(name="mine -fb")
    code, text = command("status", "--name", "mine")
    assert code == 0 and "Endpoint ep1" in text


@pytest.mark.parametrize("name", [*TARGETED, "delete", "deploy"])
@pytest.mark.parametrize("endpoint_id", ["", "../pods/pod1", "ep1/workers", "ep1?x=1", " "])
def test_what_is_no_id_is_never_taken_for_another_endpoint(runpod, command, name, endpoint_id):
    """As from an empty shell variable, or a path that leads to something else of the account."""
    runpod.add()
    words = [*SHIP] if name == "deploy" else [name, *words_for(name)]
    code, text = command(*words, "--endpoint-id", endpoint_id)
    assert code == 2 and f"not {endpoint_id!r}." in text and not runpod.requests


@pytest.mark.parametrize("name", [*TARGETED, "delete"])
def test_an_empty_name_is_no_endpoint_s(runpod, command, name):
    runpod.add()
    code, text = command(name, "--name", "", *words_for(name))
    assert code == 1 and "No endpoint is named ''." in text and not runpod.writes


def test_delete_wants_to_be_told_which(command, runpod, capsys):
    runpod.add()
    with pytest.raises(SystemExit) as ended:
        command("delete", "--yes")
    assert ended.value.code == 2 and "--endpoint-id --name is required" in capsys.readouterr().err
    assert not runpod.writes


def test_delete_without_a_yes_deletes_nothing(runpod, command):
    runpod.add()
    code, text = command("delete", "--endpoint-id", "ep1")
    assert code == 2 and "needs a yes" in text and runpod.endpoints and not runpod.writes


@pytest.mark.parametrize(("typed", "is_deleted"), [("y", True), ("n", False), ("", False)])
def test_delete_asks_by_name_and_id(runpod, clock, tmp_path, monkeypatch, typed, is_deleted):
    runpod.add()
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True, highlight=False)
    monkeypatch.setattr("builtins.input", lambda *_: typed)
    environment = {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    arguments = ["delete", "--name", "qwen-image", "--state", str(tmp_path)]
    deploy_qwen.main(arguments, environment, console, Clock(clock.now, clock.pause))
    assert "Delete qwen-image (ep1) for good?" in screen.getvalue() and (not runpod.endpoints) is is_deleted


def test_delete_keeps_what_the_configuration_was(runpod, command):
    runpod.add(OLD)
    code, text = command("delete", "--name", "qwen-image", "--yes")
    assert code == 0 and not runpod.endpoints
    (file,) = (runpod.state / "ep1").glob("*.json")
    assert str(file) in text and OLD in file.read_text()


def test_a_dropped_answer_to_a_deletion_is_a_deletion(runpod, command):
    other = runpod.add(name="another")
    runpod.add()
    runpod.faults = [Fault("DELETE", "/serverless/", drop="after")]
    code, text = command("delete", "--name", "qwen-image", "--yes")
    assert code == 0 and "is deleted" in text and list(runpod.endpoints) == [other["id"]]


def test_pause_changes_the_number_of_workers_alone(runpod, command):
    endpoint = runpod.add()
    before = settable_fields(endpoint) | {"workers": None}
    assert command("pause", "--yes")[0] == 0
    assert endpoint["workers"] == {"min": 0, "max": 0, "idleTimeout": 60}
    assert settable_fields(endpoint) | {"workers": None} == before
    sent = len(runpod.writes)
    code, text = command("pause", "--yes")
    assert code == 0 and "is paused already" in text and len(runpod.writes) == sent


def test_an_endpoint_that_scales_on_its_requests_is_paused_and_resumed_too(runpod, command):
    endpoint = runpod.add(scaling={"type": "REQUEST_COUNT", "requestCount": 2})
    assert command("pause", "--yes")[0] == 0 and endpoint["workers"] == {"min": 0, "max": 0}
    assert command("resume", "--yes")[0] == 0 and endpoint["workers"] == {"min": 1, "max": 5}


@pytest.mark.parametrize(("name", "method", "words"), [
    ("pause", "PATCH", "`list` says whether the change was made"), ("delete", "DELETE", "`list` says whether"),
    ("status", "GET", "No endpoint was being changed"),
])  # fmt: skip
def test_ctrl_c_says_whether_something_may_have_been_changed(runpod, command, name, method, words):
    runpod.add()

    def interrupt(now, path):
        if now == method:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    runpod.on_request = interrupt
    code, text = command(name, "--endpoint-id", "ep1", *words_for(name))
    assert code == 130 and f"Interrupted. {words}" in text


def test_pause_tells_of_workers_that_do_not_end_and_of_jobs_that_wait(runpod, command, monkeypatch):
    runpod.add()
    runpod.add_job("ep1", {"task": "generate"})
    monkeypatch.setattr(runpod, "tick", lambda endpoint_id: None)
    code, text = command("pause", "--yes")
    assert code == 0 and "1 workers are ending · 75 s" in text
    assert "Workers are still there after 120 s" in text and "Jobs in the queue: 1." in text


def test_resume_without_a_saved_configuration_says_what_it_takes(runpod, command):
    endpoint = runpod.add(workers=0)
    endpoint["workers"] = {"min": 0, "max": 0}  # as RunPod does by itself after a week without jobs
    code, text = command("resume", "--yes")
    assert code == 0 and "No saved configuration says" in text and endpoint["workers"]["max"] == 3
    assert command("resume", "--yes", "--workers-max", "7")[0] == 0 and endpoint["workers"]["max"] == 7
    sent = len(runpod.writes)
    code, text = command("resume", "--yes")
    assert code == 0 and "is not paused: it has up to 7" in text and len(runpod.writes) == sent


def test_a_rollback_after_a_pause_goes_to_the_image_before_and_not_to_the_pause(runpod, command):
    endpoint = runpod.add()
    assert command(*SHIP)[0] == 0
    assert command("pause", "--yes")[0] == 0 and command("resume", "--yes")[0] == 0
    assert command("rollback", "--yes")[0] == 0
    assert endpoint["image"] == OLD and endpoint["workers"]["max"] == 5


def test_a_number_of_workers_that_runpod_does_not_keep_is_told(runpod, command):
    runpod.add()
    runpod.ignores = {"workers"}
    code, text = command("pause", "--yes")
    assert code == 1 and "RunPod did not keep what was sent: workers.min is 1, not 0; workers.max is 5, not 0" in text


@pytest.mark.parametrize("gpus", [[], [("NVIDIA GeForce RTX 4090", "ADA_24", 24, 0, "HIGH")]])
def test_a_card_that_the_catalogue_does_not_price_is_not_called_free(runpod, command, gpus):
    runpod.add(NEW)
    runpod.gpus = gpus
    code, text = command("list")
    assert code == 0 and re.search(r"1 of 5 +\? ", text)


def test_endpoints_are_listed_without_the_catalogue_too(runpod, command):
    runpod.add(NEW)
    runpod.faults = [Fault("GET", "/catalog/gpus", 403)]
    code, text = command("list")
    assert (
        code == 0
        and "No prices: RUNPOD_API_KEY may not do this with the catalogue of cards" in text
        and re.search(r"1 of 5 +\? ", text)
    )


def test_open_shows_the_page_in_the_operator_s_browser(runpod, tmp_path):
    runpod.add()
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": str(browser), "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    command = [sys.executable, "deploy_qwen.py", "open", "--name", "qwen-image", "--state", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == done.stdout == "https://console.runpod.io/serverless/user/endpoint/ep1\n"


def test_rollback_lists_what_is_saved_without_a_key_or_the_network(runpod, command):
    runpod.add(env={"LEAK": KEY})
    assert command(*SHIP)[0] == 0
    asked = len(runpod.requests)
    for which in ([], ["--endpoint-id", "ep1"], ["--name", "qwen-image"]):
        code, text = command("rollback", "--list", *which, key="")
        assert code == 0 and "Endpoint ep1 (qwen-image)" in text and OLD in text, text
    assert "No saved configuration" in command("rollback", "--list", "--name", "another", key="")[1]
    assert len(runpod.requests) == asked


def test_a_saved_configuration_is_named_as_the_list_shows_it(runpod, command):
    endpoint = runpod.add()
    assert command(*SHIP)[0] == 0
    name = command("rollback", "--list")[1].split()[-1]
    assert command("rollback", "--yes", "--to", name)[0] == 0 and endpoint["image"] == OLD


@pytest.mark.parametrize("arguments", [["list"], ["status", "--name", "artyx-qwen-server"], ["spent"],
                                       ["spent", "--name", "artyx-qwen-server"], ["rollback", "--list"]])  # fmt: skip
def test_tables_fit_80_columns_and_break_no_id(runpod, command, arguments):
    runpod.builds[WIDE] = Build(draws("1a2b3c4d5e6f-12345678"))
    runpod.numbers = iter([*["jpnw0v75y3qoql", "gz3k7d9q2m1x8v"] * 2, *range(100)])
    endpoint = runpod.add(WIDE, name="artyx-qwen-server", gpu={"pools": ["ADA_80_PRO", "BLACKWELL_180"], "count": 1})
    assert endpoint["id"] == "epjpnw0v75y3qoql"
    runpod.bills.add("serverless", endpoint["id"], 1, 12_345.25, 0, 0.05, 0.1)
    runpod.bills.add("serverless", "a_deleted_one_1", 1, 1.25, 0, 0.05, 0.1)
    assert command("pause", "--name", "artyx-qwen-server", "--yes")[0] == 0  # which saves a configuration
    assert command("resume", "--name", "artyx-qwen-server", "--yes")[0] == 0
    runpod.start(endpoint["id"], "IDLE")
    code, text = command(*arguments, width=80)
    assert code == 0, text
    lines = text.splitlines()
    rows = [line for line in lines if line.endswith(" ")]  # those of tables, which are filled up to their width
    assert rows and all(len(line) <= 80 for line in rows), text
    names = {"list": ["epjpnw0v75y3qoql", "1a2b3c4d5e6f-12345678"], "status": ["1a2b3c4d5e6f-12345678", "idle"],
             "spent": ["12345.40"], "rollback": ["Z.json"]}[arguments[0]]  # fmt: skip
    assert all(any(name in row for row in rows) for name in names), text
