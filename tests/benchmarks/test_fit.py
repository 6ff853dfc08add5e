"""`fit`: its parts and predictions, what they serve of the tiny checkpoint, the command whole."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import fit
from benchmarks.measure import full_size, layout_run, layouts
from benchmarks.measure.layouts import Case
from benchmarks.measure.stage_times import job_seconds

from ..conftest import ROOT
from .conftest import NOTHING_HERE, machine, options, served_rows


def test_on_a_gpu_every_part_has_its_plan_and_prediction(tmp_path):
    (tmp_path / "edit").mkdir()  # as a checkpoint that is written
    parts = fit.parts_of(options(fit, "--full-size", str(tmp_path)), machine())
    assert [part.name for part in parts[:3]] == ["ours-24-generate", "ours-24-edit", "ours-80-both"]
    by_name = {part.name: part for part in parts}
    assert not by_name["ours-24-generate"].obstacle and by_name["ours-141-both"].obstacle
    for part in parts:
        for row in part.rows:
            assert 0 < row["predicted peak GB"] <= row["cap GB"] and row["checkpoint"] == full_size.NAME
    assert by_name["ours-24-generate"].arguments["machine"].gpu.capability == (8, 9)
    assert [len(part.rows) for part in parts[:3]] == [2, 2, 4]


def test_the_command_writes_rows_a_table_and_a_plot(tmp_path):
    """The whole command with the part's own process; 128 pixels are too few for a job."""
    output = tmp_path / "result.json"
    small = ("--sizes", "128", "256", "--steps", "1", "--part", "ours-both", "ours-24-generate")
    command = [sys.executable, "-m", "benchmarks", "fit", *small, "--output", str(output)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # several wait for each other on a machine that is busy
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=one_thread)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["benchmark"] == "fit" and report["runs"]["1"]["versions"]["diffusers"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "measured" in done.stdout

    rows = {(row["checkpoint"], row["task"], row["size"]): row for row in report["rows"]}
    assert len(rows) == 6
    for size in (128, 256):
        assert rows[full_size.NAME, "generate", size]["measured"] == "not measured: there is no GPU here"
    for task in layouts.TASKS:
        assert rows["tiny", task, 128]["measured"].startswith("failed: invalid_input: width must be")
        row = rows["tiny", task, 256]
        assert row["measured"] == "measured" and row["steps"] == 1
        assert row["weights GB"] == row["predicted weights GB"] > 0
        assert row["step s"] > 0 and row["load s"] > 0 and row["read GB/s"] > 0
        assert job_seconds(row, 1) == pytest.approx(row["job s"], abs=0.001)
    generate, edit = (rows["tiny", task, 256] for task in layouts.TASKS)
    assert edit["encode s"] > 0 == generate["encode s"]
    assert 0 < edit["load GB"] < generate["load GB"]  # text encoder and VAE are in memory


def test_a_load_that_fails_is_a_row_that_says_why(quiet):
    chosen = options(fit, "--sizes", "256", "--steps", "1")
    part = fit.part_of(Case("ours", None, ("generate",)), ROOT / "nowhere", chosen, NOTHING_HERE, "")
    (row,) = served_rows(layout_run.serve_ours, part)
    assert row["measured"] == "failed: nowhere/generate is not a folder on this worker"


def test_without_matplotlib_the_record_stays_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    from benchmarks.report import plots
    from benchmarks.report.rows import Record

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.fit(Record(tmp_path / "a.json", "fit", ("part",), {}), tmp_path)
    assert "No plot: matplotlib is not installed" in capsys.readouterr().out
