"""The command line: what it refuses in one sentence, which models a worker gets, and a port that is taken."""

import os
import socket
import subprocess
import sys

import pytest

from qwen_local.options import TINY, models_of, read_options, worker_settings

from ..conftest import ROOT
from ..support.patience import run_to_its_end


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["--workers", "0"], "--workers must be from 1 to 16, not 0"),
        (["--model", "/nowhere/at/all"], "--model must be a folder that is there or ORG/NAME, not /nowhere/at/all"),
        (["--edit-model", "./typo"], "--edit-model must be a folder that is there or ORG/NAME"),
        (["--token", "short"], "--token must have at least 8 characters"),
        (["--playground", "javascript:alert(1)"], "--playground must begin with http:// or https://"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_its_name(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        read_options(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_the_models_are_the_option_s_or_the_environment_s_or_the_tiny_ones():
    shell = {"QWEN_EDIT_MODEL": "Org/Edit"}
    assert models_of(read_options([]), {}) == {
        "QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit"),
    }  # fmt: skip
    assert models_of(read_options(["--model", "Org/Name"]), shell) == {
        "QWEN_IMAGE_MODEL": "Org/Name", "QWEN_EDIT_MODEL": "Org/Edit",
    }  # fmt: skip
    folder = os.path.relpath(TINY / "edit")
    assert models_of(read_options(["--edit-model", folder]), shell)["QWEN_EDIT_MODEL"] == str(TINY / "edit")


def test_a_worker_gets_the_shell_s_settings_but_nothing_that_leads_it_elsewhere():
    shell = {
        "QWEN_PROGRESS_SECONDS": "0.5", "STREAM": "1", "SERVER_MODE": "local", "RUNPOD_WEBHOOK_PING": "http://x",
        "RUNPOD_AI_API_KEY": "k", "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "NO_PROXY": "intranet",
    }  # fmt: skip
    settings = worker_settings(models_of(read_options([]), {}), shell)
    assert settings["QWEN_PROGRESS_SECONDS"] == "0.5" and settings["STREAM"] == "1"
    assert settings["RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"] == "true" and settings["QWEN_PRELOAD"] == "generate,edit"
    assert settings["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert not {"SERVER_MODE", "RUNPOD_WEBHOOK_PING", "RUNPOD_AI_API_KEY"} & set(settings)
    large = worker_settings({"QWEN_IMAGE_MODEL": "Org/Name", "QWEN_EDIT_MODEL": str(TINY / "edit")}, {})
    assert "QWEN_PRELOAD" not in large


def test_a_port_that_is_taken_is_told_in_one_sentence_with_the_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_to_its_end([sys.executable, "-m", "qwen_local", "--port", str(port)])
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith(f"Port {port} is taken by another program. Choose another one with --port ")
    assert ended.stderr.count("\n") == 1


def test_without_the_packages_the_command_that_installs_them_is_named():
    """As with the system's own interpreter: nothing of .venv is found."""
    command = [sys.executable, "-S", "-m", "qwen_local", "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "Use `make serve`, which installs" in ended.stderr
