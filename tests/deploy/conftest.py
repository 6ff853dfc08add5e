"""What the tests of `deploy_qwen.py` stand on: RunPod on loopback, the command, build tools that keep their calls."""

import io
import itertools
import json
import os
import shutil
import signal
import sys

import pytest
from rich.console import Console

import deploy_qwen
from qwen_deploy.runpod.client import Clock

from .fake_runpod import KEY, Build, FakeRunPod, draws

NEW = "docker.io/you/qwen-image:v1"
OLD = "docker.io/you/qwen-image:v0"
SHIP = ("--registry", "docker.io/you", "--tag", "v1", "--skip-build", "--yes")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C arrives also where the tests run as a shell's background job, which begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def runpod():
    fake = FakeRunPod()
    fake.builds = {NEW: Build(draws("v1")), OLD: Build(draws("v0"))}
    yield fake
    fake.close()
    assert not fake.wrong, "the fake answered against RunPod's document"


class PretendedTime:
    """A clock that pauses move on: what waits for minutes ends at once, on a busy machine too."""

    def __init__(self):
        self.seconds, self.pauses = 0.0, []

    def now(self):
        return self.seconds

    def pause(self, seconds):
        self.pauses.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock():
    return PretendedTime()


@pytest.fixture
def command(runpod, clock, tmp_path):
    """command(*arguments): (exit code, everything printed) of `deploy_qwen.py`, in pretended time.

    `width`: the terminal's columns.
    """
    runpod.state = tmp_path / "state"
    pretended = Clock(clock.now, clock.pause)

    def run(*arguments, key=KEY, url=runpod.url, clock=pretended, width=300):
        screen = io.StringIO()
        console = Console(file=screen, width=width, highlight=False)
        folders = ["--state", str(runpod.state)]
        if not arguments or arguments[0].startswith("-") or arguments[0] == "send":
            folders += ["--output", str(tmp_path / "out")]
        environment = {"RUNPOD_API_KEY": key, "RUNPOD_API_URL": url}
        code = deploy_qwen.main([*arguments, *folders], environment, console, clock)
        text = screen.getvalue()
        assert KEY not in text
        return code, text

    return run


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Tools on PATH that write down how they were called; `works` says which of them do."""

    class Tools:
        log = tmp_path / "calls.jsonl"

        def calls(self):
            return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

        def install(self, *names, failing=()):
            for old in folder.glob("*"):
                old.unlink()
            for name in names:
                (folder / name).write_text(
                    f"#!{sys.executable}\nimport json, os, sys\n"
                    f"open({str(self.log)!r}, 'a').write(json.dumps({{'command': [os.path.basename(sys.argv[0])] + "
                    "sys.argv[1:], 'environment': dict(os.environ)}) + '\\n')\n"
                    f"sys.exit(any(word in sys.argv for word in {list(failing)!r}) and 'it broke')\n"
                )
                (folder / name).chmod(0o755)

    folder = tmp_path / "bin"
    folder.mkdir()
    git = tmp_path / "git"  # alone: a build tool of this machine must not be found
    git.mkdir()
    (git / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{git}")
    tools = Tools()
    tools.install("docker")
    return tools


def only(runpod):
    (endpoint,) = runpod.endpoints.values()
    return endpoint


def job_tasks(runpod):
    """The tasks of the jobs in order, repetitions once: old workers are asked past."""
    return [task for task, _ in itertools.groupby(job["input"]["task"] for job in runpod.jobs.values())]


def settable_fields(endpoint):
    return {name: value for name, value in endpoint.items() if name not in ("id", "createdAt", "requestUrls")}
