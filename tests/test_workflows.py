"""GitHub's workflows call what is there: the Makefile's targets, the helper's options, the Dockerfile's arguments."""

import re
from fnmatch import fnmatch

import pytest
import yaml

from qwen_deploy.options import parser

from .conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def commands(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_the_targets_are_the_makefile_s(workflow):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"\bmake ([\w-]+)", commands(workflow))
    assert called and set(called) <= set(targets)


def test_the_release_is_built_by_the_helper_s_options():
    lines = [line for line in commands(ROOT / ".github/workflows/image.yml").splitlines() if "deploy_qwen.py" in line]
    for line in lines:
        options = parser("").parse_args(line.replace("$image", "").split()[2:])
        assert options.build_only or options.push_only
        for argument in options.build_arg:
            assert f"ARG {argument.split('=')[0]}" in (ROOT / "Dockerfile").read_text()
    assert len(lines) == 2


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_the_pythons_are_those_that_the_worker_runs_on(workflow):
    versions = re.findall(r'"(3\.\d+)"', workflow.read_text())
    assert versions and min(tuple(map(int, version.split("."))) for version in versions) >= (3, 11)


def test_what_the_image_is_made_of_is_watched():
    watched = yaml.safe_load((ROOT / ".github/workflows/image.yml").read_text())[True]["push"]["paths"]  # `on` is true
    given = ["Dockerfile"] + [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    found = {one for one in given for path in watched if fnmatch(one, path) or fnmatch(f"{one}/file", path)}
    assert set(given) - found == set()
