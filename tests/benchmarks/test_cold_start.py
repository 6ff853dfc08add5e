"""The benchmark of cold starts: real worker processes, and what their messages come to."""

import json

import pytest
from diffusers import QwenImageTransformer2DModel

from benchmarks import cold_start
from qwen_worker.checkpoints import search

from ..conftest import ROOT

NARROW = {"num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": [4, 14, 14]}


def test_starts_are_timed_stage_by_stage_on_both_checkpoints(benchmark, monkeypatch, tmp_path, sample):
    """The large one is started with --prove alone."""
    monkeypatch.setattr(cold_start, "WIDTH", NARROW)
    blocks, names = sample((0, ["tiny"]), (2, ["tiny", "2 full-size blocks"]))
    report = benchmark("cold_start", "--blocks", str(blocks), "--rounds", "1", "--folder", str(tmp_path))
    rows, each = report["rows"], len(cold_start.EVENTS)
    assert [row["until"] for row in rows] == [*cold_start.EVENTS] * len(names) and report["rounds"] == 1
    assert [row["checkpoint"] for row in rows[::each]] == names
    for column in ("processor seconds (median)", "seconds (median)"):
        for first in range(0, len(rows), each):
            seconds = [row[column] for row in rows[first : first + each]]
            assert 0 < seconds[0] and seconds == sorted(seconds), rows


def test_the_large_checkpoint_is_one_that_the_worker_reads(monkeypatch, tmp_path):
    monkeypatch.setattr(cold_start, "WIDTH", NARROW)
    folder = cold_start.large_checkpoint(tmp_path, 2)
    config = json.loads((folder / "transformer/config.json").read_text())
    assert config["num_layers"] == 2 and config["num_attention_heads"] == 2
    tensors = QwenImageTransformer2DModel.from_pretrained(folder / "transformer").state_dict().values()
    assert search.find(str(folder), ()).parameters["transformer"] == sum(tensor.numel() for tensor in tensors)


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
