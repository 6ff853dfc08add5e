"""The benchmark commands run on the tiny checkpoint and write what they measured."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.parametrize("arguments", [("handler", "--size", "256", "--repeats", "2")])
def test_a_benchmark_writes_its_rows(tmp_path, arguments):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", *arguments, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["benchmark"] == arguments[0] and report["versions"]["diffusers"]
    ours, other = report["rows"]
    assert ours["ratio"] == 1 and ours["added ms (median)"] > 0 and other["added ms (median)"] > 0
