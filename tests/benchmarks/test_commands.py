"""The benchmark commands: their help, what they write, and how they end."""

import json
import sys

import pytest

from benchmarks import soak
from benchmarks.__main__ import main

from ..conftest import only_proved
from ..support.patience import run_to_its_end

HELP = """
import contextlib, io, sys
from benchmarks.__main__ import BENCHMARKS, main
for name in BENCHMARKS:
    sys.argv = ["benchmarks", name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main()
    assert sys.modules[f"benchmarks.{name}"].__doc__.splitlines()[0] in text.getvalue(), name
    print(name, *{"torch", "diffusers", "transformers"} & sys.modules.keys())
"""


def test_no_help_imports_torch():
    done = run_to_its_end([sys.executable, "-c", HELP])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "handler",
        "throughput",
        "two_cards",
        "soak",
        "fit",
        "speed",
        "step",
        "guards",
        "load",
        "cold_start",
        "computed",
        "costs",
        "matching",
        "photos",
        "rounds",
        "single_files",
        "caches",
        "quality",
    ]


def test_the_handler_s_share_is_measured(benchmark):
    report = benchmark("handler", "--size", "256", "--steps", "2", "--repeats", "1")
    assert report["benchmark"] == "handler" and report["versions"]["diffusers"]
    ours, other = report["rows"]
    assert ours["ratio"] == 1 and ours["added ms (median)"] > 0 and other["added ms (median)"] > 0


@only_proved
def test_the_host_s_time_for_a_compiled_block_is_measured_in_three_ways(benchmark):
    report = benchmark("guards", "--blocks", "2", "--repeats", "1")
    assert [row["ratio"] > 0 for row in report["rows"]] == [True] * 6 and report["rows"][0]["ratio"] == 1


def test_step_caches_are_beside_each_other_for_as_many_passes(benchmark):
    report = benchmark("caches", "--prompts", "1", "--steps", "8")
    none, ours, other = report["rows"]
    assert (none["passes"], ours["passes"]) == (16, 14)  # the seventh of eight steps is predicted
    assert other["passes"] >= ours["passes"] and ours["PSNR"] > 20


def test_a_benchmark_with_wrong_jobs_ends_with_an_error_and_its_file_is_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "result.json"
    monkeypatch.setattr(soak, "run", lambda options: ([{"job": "url", "end": "WRONG: lost", "count": 2}], {"wrong": 2}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "soak", "--output", str(output)])
    with pytest.raises(SystemExit, match="2 jobs ended wrongly"):
        main()
    assert json.loads(output.read_text())["wrong"] == 2 and "WRONG: lost" in capsys.readouterr().out


def test_a_short_soak_ends_every_job_rightly(benchmark):
    """With this seed the 20 jobs are of every kind, and one by URL falls into the time without a bucket."""
    report = benchmark("soak", "--jobs", "20", "--seed", "3", "--stand-ins")
    assert report["wrong"] == 0 and sum(row["count"] for row in report["rows"]) == 20
    kinds = {"generate", "url", "edit", "background", "health", "bad", "stop"}
    assert {row["job"] for row in report["rows"]} == kinds
    assert report["SIGKILL"] == 1 and report["SIGTERM, exit 0"] == 1
