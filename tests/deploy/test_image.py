"""The image is built for RunPod by whichever tool is there."""

import subprocess

import pytest

from qwen_deploy.errors import UsageError
from qwen_deploy.image import source_version

from .conftest import NEW, only


def commands_of(docker):
    return [call["command"] for call in docker.calls()]


def test_build_only_needs_no_key_and_builds_for_runpod_s_hosts(docker, command):
    code, text = command("--build-only", "--tag", "v1", "--build-arg", "BAKE_MODELS=", key="")
    assert code == 0, text
    build = commands_of(docker)[-1]
    assert build[:3] == ["docker", "buildx", "build"] and ["--platform", "linux/amd64"] == build[4:6]
    assert "WORKER_VERSION=v1" in build and "BAKE_MODELS=" in build and "qwen-image:v1" in build


def test_the_seed_s_command_builds_and_says_what_is_missing(docker, command):
    code, text = command("--image-name", "artyx-qwen-server", "--tag", "v1", key="")
    assert code == 0 and "--registry" in text
    assert [one[:3] for one in commands_of(docker)] == [["docker", "buildx", "ls"], ["docker", "buildx", "build"]]


def test_a_deployment_builds_pushes_and_ships(docker, runpod, command):
    assert command("--registry", "docker.io/you", "--tag", "v1", "--yes")[0] == 0
    assert ["docker", "push", NEW] in commands_of(docker) and only(runpod)["image"] == NEW


def test_a_build_that_fails_leaves_the_endpoint_alone(docker, runpod, command):
    docker.install("docker", failing=["build"])
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--yes")
    assert code == 1 and "ended with 1" in text and not runpod.writes


@pytest.mark.parametrize("names, failing, first", [
    (["docker", "podman"], ["buildx"], ["docker", "build"]),
    (["docker", "podman"], ["buildx", "info"], None),
    (["podman"], [], ["podman", "build"]),
    (["buildah"], [], ["buildah", "build", "--layers"]),  # which else makes one layer of all
])  # fmt: skip
def test_the_first_tool_that_works_builds(docker, command, names, failing, first):
    docker.install(*names, failing=failing)
    code, text = command("--build-only", "--tag", "v1")
    if first is None:
        assert code == 1 and "buildx does not work here (it broke)" in text and "buildah is not installed" in text
    else:
        assert code == 0 and commands_of(docker)[-1][: len(first)] == first


@pytest.mark.parametrize("arguments, sentence", [
    (["--image-name", "Upper"], "--image-name must match"),
    (["--tag=-x"], "--tag must match"),
    (["--registry", "https://docker.io"], "--registry must match"),
    (["--registry", "docker.io/you", "--tag", "latest"], "--tag must not be latest"),
])  # fmt: skip
def test_a_name_that_no_registry_takes_is_refused(command, docker, arguments, sentence):
    code, text = command("--dry-run", *arguments)
    assert code == 2 and sentence in text


def test_the_version_names_the_working_tree(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        done = subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    clean = source_version(tmp_path)
    assert clean == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "a").write_text("2")
    changed = source_version(tmp_path)
    (tmp_path / "b").write_text("3")
    more = source_version(tmp_path)
    assert changed.startswith(clean + "-") and len({clean, changed, more}) == 3 and source_version(tmp_path) == more
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("1")
    assert source_version(tmp_path) == clean


def test_an_untracked_picture_changes_the_version_only_where_a_build_would_copy_it(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, check=True)

    git("init", "-q")
    (tmp_path / ".dockerignore").write_text("*\n!code\n")
    (tmp_path / "code").mkdir()
    git("add", ".dockerignore")
    git("commit", "-qm", "one")
    clean = source_version(tmp_path)
    for name in ("picture.png", "A fox.JPG", "samples/one.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"a picture")
        assert source_version(tmp_path) == clean, name
    (tmp_path / "code/logo.png").write_bytes(b"a picture")
    with_logo = source_version(tmp_path)
    (tmp_path / ".dockerignore").unlink()  # then a build copies everything
    assert len({clean, with_logo, source_version(tmp_path)}) == 3


def test_outside_a_checkout_the_tag_is_needed(tmp_path):
    with pytest.raises(UsageError, match="--tag is needed"):
        source_version(tmp_path)
