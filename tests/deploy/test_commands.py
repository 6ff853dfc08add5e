"""The commands beside a deployment: rollback, status, logs, send, cost."""

import io
import json
import time

from rich.console import Console

import deploy_qwen
from qwen_deploy.runpod import api
from qwen_deploy.runpod.client import Clock

from .conftest import NEW, OLD, SHIP, settable_fields
from .fake_runpod import KEY, LATE_LINE, Build, stands_in


def test_rollback_goes_back_to_what_was_before(runpod, command):
    endpoint = runpod.add()
    before = json.loads(json.dumps(settable_fields(endpoint)))
    assert command(*SHIP, "--disk", "77")[0] == 0 and endpoint["image"] == NEW
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes")
    assert code == 0 and "health: version v0 answers" in text and settable_fields(endpoint) == before
    code, text = command("rollback", "--endpoint-id", "ep1", "--list")
    assert code == 0 and NEW in text and OLD in text


def test_rollback_without_a_saved_configuration_is_refused(runpod, command):
    runpod.add()
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes")
    assert code == 1 and "no other saved configuration" in text


def test_status_shows_everything_but_secrets(runpod, command):
    runpod.add()
    code, text = command("status", "--endpoint-id", "ep1")
    assert code == 0 and OLD in text and "QWEN_FALLBACK" in text and "hf_secret" not in text and "idle" in text


def test_an_endpoint_that_is_not_there_is_said_so(command):
    code, text = command("status", "--endpoint-id", "epX")
    assert code == 1 and "endpoint epX does not exist" in text


def test_logs_are_those_of_the_workers(runpod, command):
    runpod.add()
    code, text = command("logs", "--endpoint-id", "ep1", "--source", "container")
    assert code == 0 and "Worker ready." in text and "start container" not in text


def test_send_saves_the_picture_and_says_what_drew_it(runpod, command, tmp_path):
    runpod.add(NEW)
    code, text = command("send", "--endpoint-id", "ep1", "a fox", "--field", "num_images=1", "--field", "size=64x64")
    assert code == 0 and "seed 7" in text and len(list((tmp_path / "out").glob("*.png"))) == 1
    (job,) = runpod.jobs.values()
    assert job["input"] == {"task": "generate", "prompt": "a fox", "num_images": 1, "size": "64x64"}
    runpod.builds[NEW] = Build(stands_in("v1"))
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert "A stand-in, not a picture by the model: no weights" in text


def test_a_log_that_stays_open_ends_when_it_is_quiet(runpod, command, monkeypatch):
    monkeypatch.setattr(api, "LOG_QUIET_SECONDS", 0.3)
    runpod.add()
    runpod.lines_end.clear()
    code, text = command("logs", "--endpoint-id", "ep1")
    runpod.lines_end.set()
    assert code == 0 and "Worker ready." in text and LATE_LINE not in text


def test_a_terminal_shows_the_progress_in_place(runpod, clock, tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True)
    environment = {"RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url}
    arguments = [*SHIP, "--state", str(tmp_path), "--output", str(tmp_path)]

    def until_shown(seconds):
        """The terminal draws its line from a thread of its own."""
        clock.pause(seconds)
        for _ in range(6000):
            if "workers on the new version" in screen.getvalue():
                return
            time.sleep(0.01)
        raise AssertionError("a minute without a line of progress")

    assert deploy_qwen.main(arguments, environment, console, Clock(clock.now, until_shown)) == 0
    assert "\x1b[2K" in screen.getvalue()  # erases the line


def test_a_rollback_whose_workers_do_not_answer_is_not_called_done(runpod, command):
    runpod.add()
    assert command(*SHIP)[0] == 0
    runpod.builds[OLD] = Build(state="INITIALIZING")
    code, text = command("rollback", "--endpoint-id", "ep1", "--yes", "--wait", "60")
    assert code == 1 and f"has {OLD} again, verified" in text and "not heard to answer" in text


def test_an_environment_that_holds_the_key_comes_back_whole(runpod, command):
    endpoint = runpod.add(env={"LEAK": KEY})
    assert command(*SHIP, "--unset-env", "LEAK")[0] == 0 and "LEAK" not in endpoint["env"]
    assert command("rollback", "--endpoint-id", "ep1", "--yes")[0] == 0 and endpoint["env"] == {"LEAK": KEY}
    assert not any(KEY.encode() in file.read_bytes() for file in runpod.state.rglob("*.json"))
