"""The helper runs on an operator's machine, which has the packages of requirements-deploy.txt alone."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qwen_deploy.options import COMMANDS

from ..conftest import ROOT
from .fake_runpod import KEY

# Runs the commands of argv[2] in one process, in which the modules of argv[1] are not there.
PROGRAM = """
import json, sys

class Absent:
    modules = set(json.loads(sys.argv[1]))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import deploy_qwen

for arguments in json.loads(sys.argv[2]):
    try:
        code = deploy_qwen.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 0, (arguments, code)
assert "runpod_handler" not in sys.modules
"""


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {line.split()[0] for line in lines if "==" in line}


def installed_with(requirements):
    """The distributions that `pip install` would bring."""
    names, waiting = set(), [Requirement(text).name for text in requirements]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in names:
            names.add(name)
            needs = [Requirement(text) for text in metadata.requires(name) or []]
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return names


@pytest.fixture(scope="module")
def absent():
    """Top-level modules that this environment has and the operator's has not."""
    distributions = installed_with(pins("requirements-deploy.txt"))
    modules = metadata.packages_distributions().items()
    return [name for name, owners in modules if not distributions & {canonicalize_name(owner) for owner in owners}]


def run_as_operator(absent, commands, **variables):
    assert {"torch", "PIL", "diffusers", "transformers", "runpod", "numpy", "safetensors"} <= set(absent)
    kept = {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(absent), json.dumps(commands)]
    done = subprocess.run(arguments, cwd=ROOT, env=kept | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_needs_no_key_and_no_other_package(absent):
    text = run_as_operator(absent, [["--help"], *([name, "--help"] for name in COMMANDS)])
    assert text.count("examples:") == 2 and text.count("usage: deploy_qwen.py") == len(COMMANDS) + 1


def test_a_plan_and_its_cost_need_no_other_package(absent, runpod, tmp_path):
    runpod.add()
    plan = ["--registry", "docker.io/you", "--tag", "v1", "--skip-build", "--gpu", "auto", "--dry-run"]
    commands = [[*words, "--state", str(tmp_path)] for words in (plan, ["cost"], ["status", "--endpoint-id", "ep1"])]
    text = run_as_operator(absent, commands, RUNPOD_API_KEY=KEY, RUNPOD_API_URL=runpod.url)
    assert "PATCH /v2/serverless/ep1" in text and "HOPPER_141" in text and "Workers: 1 of 1" in text
    assert not runpod.writes


def test_volumes_and_models_need_no_other_package(absent, runpod, tmp_path):
    runpod.storage.add_volume("filled")
    create = ["volume", "create", "qwen-weights", "--yes"]
    commands = [[*words, "--state", str(tmp_path)] for words in (create, ["volume", "list"], ["registry", "list"])]
    text = run_as_operator(absent, [*commands, ["models"]], RUNPOD_API_KEY=KEY, RUNPOD_API_URL=runpod.url)
    assert "Volume qwen-weights (vol2) is there" in text and "Qwen/Qwen-Image-2.1-Turbo" in text


def test_the_operator_s_packages_are_the_worker_s():
    assert pins("requirements-deploy.txt") < pins("requirements.txt")
