"""The released checkpoints, and the image that is there or will be built: what is said before anything is done."""

import io
import shutil

import pytest
from rich.console import Console

import deploy_qwen
from qwen_deploy import build_plan, released
from qwen_worker.checkpoints import classes

from .conftest import only
from .fake_runpod import Build, draws

IMAGE = "ghcr.io/owner/qwen-image:v9"


def test_the_models_are_told_without_a_key(command):
    code, text = command("models", key="", width=80)
    assert code == 0 and all(name in text for name in classes.RELEASED)
    first, second = text.split("32.4 GB · Qwen Research License")
    assert "57.7 GB · Apache-2.0" in first and "nf4: AMPERE_16" in first
    assert "too small: AMPERE_16" in second and "any other use needs Qwen's leave" in second


def test_research_models_are_those_of_the_newer_class():
    newer = {name for name, (class_name, _) in classes.RELEASED.items() if class_name == "QwenImage21Pipeline"}
    assert {name for name in classes.RELEASED if released.licence(name) == released.RESEARCH} == newer


def test_what_two_models_share_is_downloaded_once():
    one, both = (released.download_bytes(names) for names in ([released.DEFAULT_MODELS[0]], released.DEFAULT_MODELS))
    assert both - one == 2 * classes.SIZE_20B["transformer"] and released.download_bytes(["Org/Other"]) is None


def test_a_research_model_is_said_to_be_one_before_it_is_deployed(runpod, command):
    model = "QWEN_IMAGE_MODEL=Qwen/Qwen-Image-2.1"
    code, text = command("--image", IMAGE, "--tasks", "generate", "--env", model, "--dry-run")
    assert code == 0 and "Qwen/Qwen-Image-2.1 is under the Qwen Research License" in text, text


def test_an_image_that_is_there_is_deployed_without_a_build(runpod, command, docker):
    runpod.builds[IMAGE] = Build(draws("v9"))
    code, text = command("--image", IMAGE, "--yes")
    assert code == 0 and only(runpod)["image"] == IMAGE and only(runpod)["name"] == "qwen-image" and not docker.calls()


@pytest.mark.parametrize("arguments, sentence", [
    (("qwen-image:v1",), "--image must be REGISTRY/NAME:TAG"),
    (("ghcr.io/owner/qwen-image",), "--image must be REGISTRY/NAME:TAG"),
    (("ghcr.io/owner/qwen-image:latest",), "with the tag of one build"),
    ((IMAGE, "--registry", "docker.io/you"), "--registry has no meaning beside --image"),
    ((IMAGE, "--build-arg", "BAKE=yes"), "--build-arg has no meaning beside --image"),
])  # fmt: skip
def test_an_image_that_names_no_one_build_is_refused(runpod, command, arguments, sentence):
    code, text = command("--image", *arguments, "--yes")
    assert code == 2 and sentence in text and not runpod.requests


@pytest.mark.parametrize("arguments, size, held", [
    ((), "7 GB", "without weights"),
    (("--build-arg", "BAKE=yes"), "106 GB", "Qwen/Qwen-Image, Qwen/Qwen-Image-Edit"),
    (("--build-arg", "BAKE=yes", "--build-arg", "BAKE_MODELS=Qwen/Qwen-Image"), "65 GB", "the weights of Qwen"),
])  # fmt: skip
def test_a_build_says_its_size_disk_and_minutes_before_it_begins(docker, command, arguments, size, held):
    code, text = command("--image-name", "my-server", "--tag", "v1", *arguments, key="")
    lines = text.splitlines()
    line = next(line for line in lines if line.startswith("Size:"))
    assert code == 0 and size in line and held in line and "are free on the disk of" in text
    told = next(number for number, line in enumerate(lines) if "It pushes nothing, deploys nothing" in line)
    assert told < next(number for number, line in enumerate(lines) if line.startswith("$ docker buildx build"))


def test_a_dry_run_of_a_build_for_this_machine_builds_nothing(docker, command):
    code, text = command("--image-name", "my-server", "--tag", "v1", "--dry-run", key="")
    assert code == 0 and "It pushes nothing, deploys nothing" in text and "$ docker buildx build" in text
    assert [call["command"] for call in docker.calls()] == [["docker", "buildx", "ls"]]  # whether it works


def test_a_disk_that_is_too_small_is_said_so(docker, command, monkeypatch, tmp_path):
    small = shutil._ntuple_diskusage(100, 90, 10 * 10**9)
    monkeypatch.setattr(build_plan.shutil, "disk_usage", lambda place: small)
    code, text = command("--build-only", "--tag", "v1", key="")
    assert code == 0 and "25 GB are needed, 10 GB are free" in text and "The disk seems too small" in text


def test_on_a_terminal_a_build_is_asked_for_and_a_no_builds_nothing(docker, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True, highlight=False)
    monkeypatch.setattr(console, "input", lambda question, **options: "n")
    assert deploy_qwen.main(["--image-name", "my-server", "--tag", "v1"], {}, console) == 2
    assert "7 GB" in screen.getvalue() and not docker.calls()
