"""The benchmark commands run on the tiny checkpoint and write what they measured."""

import json
import subprocess
import sys

import pytest

from benchmarks import soak
from benchmarks.__main__ import main

from ..conftest import ROOT


@pytest.fixture
def benchmark(tmp_path):
    """benchmark(*arguments): the report that the command writes."""

    def measured(*arguments):
        output = tmp_path / "result.json"
        command = [sys.executable, "-m", "benchmarks", *arguments, "--output", str(output)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        report = json.loads(output.read_text())
        assert report["benchmark"] == arguments[0] and report["versions"]["diffusers"]
        return report

    return measured


def test_the_handler_s_share_is_measured(benchmark):
    ours, other = benchmark("handler", "--size", "256", "--repeats", "2")["rows"]
    assert ours["ratio"] == 1 and ours["added ms (median)"] > 0 and other["added ms (median)"] > 0


def test_a_benchmark_with_wrong_jobs_ends_with_an_error_and_its_file_is_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "result.json"
    monkeypatch.setattr(soak, "run", lambda options: ([{"job": "url", "end": "WRONG: lost", "count": 2}], {"wrong": 2}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "soak", "--output", str(output)])
    with pytest.raises(SystemExit, match="2 jobs ended wrongly"):
        main()
    assert json.loads(output.read_text())["wrong"] == 2 and "WRONG: lost" in capsys.readouterr().out


def test_a_short_soak_ends_every_job_rightly(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", "soak", "--jobs", "50", "--stand-ins", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["wrong"] == 0 and sum(row["count"] for row in report["rows"]) == 50
    assert report["SIGKILL"] == 1 and report["SIGTERM, exit 0"] == 1
