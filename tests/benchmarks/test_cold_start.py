"""The benchmark of cold starts: real worker processes, and what their messages come to."""

import json

import pytest

from benchmarks import cold_start

from ..conftest import ROOT

NARROW = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": [4, 14, 14]}


def test_starts_are_timed_stage_by_stage_on_both_checkpoints(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(cold_start, "WIDTH", NARROW)
    report = benchmark("cold_start", "--blocks", "2", "--rounds", "1", "--folder", str(tmp_path))
    config = json.loads((tmp_path / "generate-2/transformer/config.json").read_text())
    assert config["num_layers"] == 2 and config["num_attention_heads"] == 2
    rows = report["rows"]
    assert [row["until"] for row in rows] == [*cold_start.EVENTS, *cold_start.EVENTS]
    assert {row["checkpoint"] for row in rows} == {"tiny", "2 full-size blocks"} and report["rounds"] == 1
    for column in ("processor seconds (median)", "seconds (median)"):
        for few in (rows[:4], rows[4:]):
            seconds = [row[column] for row in few]
            assert 0 < seconds[0] <= seconds[1] <= seconds[2] <= seconds[3], few


def test_the_page_s_seconds_are_the_recorded_ones():
    events = "job taken", "reading weights", "first step"
    words = dict(zip(("the job is taken", "weights are read", "the first step is over"), events, strict=True))
    rows = json.loads((ROOT / "benchmarks/results/cold_start.json").read_text())["rows"]
    tree = rows[-1]["tree"]
    for said, event in words.items():
        seconds = [f"{row['seconds (median)']:.1f}" for row in rows if (row["tree"], row["until"]) == (tree, event)]
        assert f"| {said} | {' | '.join(seconds)} |" in (ROOT / "docs/speed.md").read_text()


def test_a_start_whose_job_fails_says_why():
    with pytest.raises(RuntimeError, match="the job failed: .*nothing-here"):
        cold_start.start(cold_start.HERE, cold_start.HERE / "nothing-here", {})
