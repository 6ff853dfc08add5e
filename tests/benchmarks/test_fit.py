"""`fit`: its parts and predictions, what they serve of the tiny checkpoint, the command whole."""

import json
import subprocess
import sys

import pytest

from benchmarks import fit
from benchmarks.measure import full_size, layout_run
from benchmarks.measure.layouts import Case
from benchmarks.measure.stage_times import job_seconds

from ..conftest import ROOT
from .conftest import NOTHING_HERE, machine, options, served_rows


def test_on_a_gpu_every_part_has_its_plan_and_prediction(tmp_path):
    (tmp_path / "edit").mkdir()  # as a checkpoint that is written
    found = fit.parts_of(options(fit, "--full-size", str(tmp_path)), machine())
    assert [part.name for part in found[:3]] == ["ours-24-generate", "ours-24-edit", "ours-80-both"]
    by_name = {part.name: part for part in found}
    assert not by_name["ours-24-generate"].obstacle and by_name["ours-141-both"].obstacle
    for part in found:
        for row in part.rows:
            assert 0 < row["predicted peak GB"] <= row["cap GB"] and row["checkpoint"] == full_size.NAME
    assert by_name["ours-24-generate"].arguments["machine"].gpu.capability == (8, 9)
    assert [len(part.rows) for part in found[:3]] == [2, 2, 4]


def test_the_tiny_checkpoint_is_served_and_its_weights_are_the_predicted_ones(quiet):
    chosen = options(fit, "--sizes", "256", "--steps", "2")
    here = fit.part_of(Case("ours", None), full_size.TINY, chosen, NOTHING_HERE, "")
    rows = served_rows(layout_run.serve_ours, here)
    assert [(row["task"], row["measured"]) for row in rows] == [("generate", "measured"), ("edit", "measured")]
    for row in rows:
        assert row["weights GB"] == row["predicted weights GB"] > 0
        assert row["step s"] > 0 and row["load s"] > 0 and row["read GB/s"] > 0
        assert job_seconds(row, 2) == pytest.approx(row["job s"], rel=0.2)
    by_task = {row["task"]: row for row in rows}
    assert by_task["edit"]["encode s"] > 0 == by_task["generate"]["encode s"]
    assert 0 < by_task["edit"]["load GB"] < by_task["generate"]["load GB"]  # text encoder and VAE are in memory


def test_a_job_that_fails_is_a_row_that_says_why(quiet):
    chosen = options(fit, "--sizes", "128", "256", "--steps", "1")
    here = fit.part_of(Case("ours", None, ("generate",)), full_size.TINY, chosen, NOTHING_HERE, "")
    small, good = served_rows(layout_run.serve_ours, here)
    assert small["measured"].startswith("failed: invalid_input: width must be") and good["measured"] == "measured"
    wrong = Case("ours", None, ("generate",))
    (row, _) = served_rows(layout_run.serve_ours, here, case=wrong, folder=ROOT / "nowhere")
    assert row["measured"] == "failed: nowhere/generate is not a folder on this worker"


def test_the_command_writes_rows_a_table_and_a_plot(tmp_path):
    small = ("--sizes", "256", "--steps", "1", "--part", "ours-both", "ours-24-generate")
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", "fit", *small, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["benchmark"] == "fit" and report["runs"]["1"]["versions"]["diffusers"]
    by_checkpoint = {row["checkpoint"]: row["measured"] for row in report["rows"]}
    assert by_checkpoint == {full_size.NAME: "not measured: there is no GPU here", "tiny": "measured"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "measured" in done.stdout


def test_without_matplotlib_the_record_stays_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    from benchmarks.report import plots
    from benchmarks.report.rows import Record

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.fit(Record(tmp_path / "a.json", "fit", ("part",), {}), tmp_path)
    assert "No plot: matplotlib is not installed" in capsys.readouterr().out
