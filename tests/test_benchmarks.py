"""The benchmark commands run on the tiny checkpoint and write what they measured."""

import json
import math
import subprocess
import sys

import pytest

from .conftest import ROOT


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


def test_the_fit_of_a_card_is_predicted_and_its_jobs_run(benchmark):
    small = ("--size", "256", "--steps", "1", "--jobs", "1")
    (row,) = benchmark("fit", "--vram-gb", "24", "--trial", *small)["rows"]
    assert row["plan"].startswith("fp8 on cuda, weights 13.77 GB, modulation table")
    assert row["generate s"] > 0 and row["edit s"] > 0 and row["served plan"].startswith("fp32 on cpu")


def test_the_full_size_architecture_is_what_placement_counts_with():
    from benchmarks.full_size import architecture
    from qwen_worker.checkpoint import PARTS_20B, SIZE_20B, count_parts

    held = {
        name: {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for name, model in architecture().items()
    }
    assert {name: sum(map(math.prod, shapes.values())) for name, shapes in held.items()} == SIZE_20B
    assert count_parts(held) == PARTS_20B


def test_a_short_soak_ends_every_job_rightly(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", "soak", "--jobs", "50", "--stand-ins", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["wrong"] == 0 and sum(row["count"] for row in report["rows"]) == 50
    assert report["SIGKILL"] == 1 and report["SIGTERM, exit 0"] == 1


def test_the_costs_in_the_deploy_page_are_the_command_s(benchmark):
    report = benchmark("costs")
    assert report["basis"] == "computed"
    page = (ROOT / "docs/deploying.md").read_text()
    for row in report["rows"]:
        figures = f"${row['$ a picture']} ({row['picture s']} s) | ${row['$ an edit']} ({row['edit s']} s)"
        assert f"| {row['pool']} | {row['card']} | {row['$/h']} | {figures} |" in page
