"""The first commands on a plain machine: help, or one line that says what to install, and no traceback."""

import subprocess
import sys

import pytest

from ..conftest import ROOT


def told(*command):
    """Exit code, stdout and stderr of a command in a Python that has no packages."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", [[], ["send"], ["volume"]])
def test_the_deploy_helper_s_help_needs_no_packages(command):
    code, printed, failed = told("deploy_qwen.py", *command, "--help")
    assert code == 0 and not failed and printed.startswith("usage: deploy_qwen.py")


@pytest.mark.parametrize(
    ("script", "arguments", "target"),
    [
        ("deploy_qwen.py", [], "deploy-tools"),
        ("deploy_qwen.py", ["--build-only"], "deploy-tools"),
        ("test_qwen_integration.py", [], "integration"),
    ],
)
def test_a_first_command_says_in_one_line_what_installs_its_packages(script, arguments, target):
    code, printed, failed = told(script, *arguments)
    assert code == 1 and not printed and failed.count("\n") == 1
    assert f"Run `make {target}`, and then `.venv/bin/python {' '.join([script, *arguments])}`." in failed
    assert f"\n{target}: " in (ROOT / "Makefile").read_text()
