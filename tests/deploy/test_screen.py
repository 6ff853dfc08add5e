"""A change that has begun goes to its end, also where the terminal is closed or nobody reads the pipe any more."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from ..conftest import ROOT
from .conftest import NEW, OLD, SHIP
from .fake_runpod import KEY, Build, stands_in


@pytest.fixture
def start(runpod, tmp_path):
    """start(*arguments, **how): the helper as a process."""
    environment = {**os.environ, "RUNPOD_API_KEY": KEY, "RUNPOD_API_URL": runpod.url, "XDG_STATE_HOME": str(tmp_path)}

    def run(*arguments, **how):
        command = [sys.executable, "deploy_qwen.py", *arguments]
        variables = environment | how.pop("env", {})
        return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, **how)

    return run


def read_until(terminal, words):
    text = b""
    while words not in text:
        text += os.read(terminal, 4096)


def on_terminal(start, *arguments):
    """The process, and its terminal as whoever types there has it."""
    ours, theirs = pty.openpty()
    process = start(*arguments, stdin=theirs, stdout=theirs, start_new_session=True)
    os.close(theirs)
    return process, ours


def test_a_closed_terminal_does_not_keep_a_deployment_from_being_rolled_back(runpod, start, tmp_path):
    endpoint = runpod.add()
    runpod.builds[NEW] = Build(early_states=("INITIALIZING",) * 1000)
    process, terminal = on_terminal(start, *SHIP, "--output", str(tmp_path))
    read_until(terminal, b"Waiting for workers")
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 130 and endpoint["image"] == OLD and len(runpod.writes_to("/v2")) == 2


def test_a_reader_that_has_gone_does_not_either(runpod, start, tmp_path):
    endpoint = runpod.add()
    runpod.builds[NEW] = Build(stands_in("v1"))
    process = start(*SHIP, "--output", str(tmp_path), stdout=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    _, failed = process.communicate()
    assert process.returncode == 1 and not failed and endpoint["image"] == OLD and len(runpod.writes_to("/v2")) == 2


@pytest.mark.parametrize("keys", [b"\x04", b"\xff\n", b"\n", b"n\n"])
def test_whatever_is_typed_instead_of_yes_is_no(runpod, start, keys):
    runpod.add()
    process, terminal = on_terminal(start, "pause")
    read_until(terminal, b"[y/N]")
    os.write(terminal, keys)
    read_until(terminal, b"Nothing was done")
    _, failed = process.communicate()
    os.close(terminal)
    assert process.returncode == 2 and not failed and not runpod.writes


def test_an_encoding_without_the_signs_is_no_failure(runpod, start):
    runpod.add()
    process = start("pause", "--yes", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    text, failed = process.communicate()
    assert process.returncode == 0 and not failed and b"? Endpoint qwen-image (ep1) is paused" in text
