"""`speed`: its parts, ours and stock in turns against the floor, the command whole."""

import pickle

import pytest

from benchmarks import speed
from benchmarks.measure import full_size, interleaved
from benchmarks.measure.contenders import Failed
from benchmarks.measure.stage_times import Stages, job_seconds
from benchmarks.report import resumable

from .conftest import NOTHING_HERE, options, speed_row


def run_here(part, todo, keep, seconds):
    """In place of a process of its own: what it would be given is pickled all the same."""
    work, todo, arguments = pickle.loads(pickle.dumps((part.work, todo, part.arguments)))
    work(keep, todo, **arguments)
    return 0


def test_the_command_measures_ours_and_stock_in_turns_against_the_floor(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resumable, "run_in_process", run_here)
    small = ("--sizes", "256", "--steps", "2", "--repeats", "1", "--whole-size", "0", "--tasks", "generate")
    report = benchmark("speed", *small)
    assert report["benchmark"] == "speed" and report["runs"]["1"]["versions"]["diffusers"]
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "generate: not measured: there is no GPU here" in printed and "generate tiny: 4 rows in" in printed

    by_checkpoint = {row["checkpoint"]: row["measured"] for row in report["rows"]}
    assert by_checkpoint == {full_size.NAME: "not measured: there is no GPU here", "tiny": "measured"}
    ours, other, *presets = [row for row in report["rows"] if row["checkpoint"] == "tiny"]
    assert (ours["contender"], other["contender"]) == ("ours", "stock")
    passes = {row["preset"]: (row["steps"], row["passes"]) for row in presets}
    assert passes == {"balanced": (30, 36), "fast": (4, 4)}  # of balanced 18 steps are computed, with guidance
    for row in (ours, other):
        assert row["measured"] == "measured" and row["steps"] == 2 and row["passes"] == 4
        assert row["of floor"] == pytest.approx(row["step s"] / row["floor step s"], rel=0.05)
        assert row["matmul TFLOP/s"] > 0
    assert ours["of stock"] == pytest.approx(job_seconds(ours, 50) / job_seconds(other, 50), abs=0.01)
    assert "of stock" not in other and other["stock"] == "on the same weights"


def test_turns_alternate_warm_up_first_and_a_failure_ends_one_s_turns():
    log = []

    def drawn(name, fails=False):
        def draw(warm_up):
            log.append(name + ("-warm" if warm_up else ""))
            if fails and not warm_up:
                raise Failed("out of memory")
            return Stages(1.0, 0, 0, 0, (1.0,), ())

        return draw

    drawn_twice, failed = interleaved.alternate([drawn("a"), drawn("b", fails=True)], 2)
    assert log == ["a-warm", "b-warm", "a", "b", "a"]
    assert len(drawn_twice) == 2 and failed == "out of memory"
    assert interleaved.outcome_fields(failed, {}, 1.0) == {"measured": "failed: out of memory"}


def test_a_ratio_needs_both_and_whole_jobs_are_compared_as_they_were():
    ours, other = speed_row(), speed_row(contender="stock", **{"step s": 0.4, "job s": 5.2})
    assert interleaved.ratio_to_stock(ours, [ours, other]) == {"of stock": round(11 / 21, 3)}
    whole = [row | {"whole": True} for row in (ours, other)]
    assert interleaved.ratio_to_stock(whole[0], whole) == {"of stock": 0.5}
    for pair in ([ours, {"contender": "stock", "measured": "failed: out of memory"}], [ours]):
        assert interleaved.ratio_to_stock(ours, pair) == {}
    failed = {"contender": "ours", "measured": "failed: x"}
    assert interleaved.ratio_to_stock(failed, [failed, other]) == interleaved.ratio_to_stock(other, [ours, other]) == {}


def test_every_preset_of_the_contract_and_every_setting_that_is_asked_has_rows():
    from qwen_worker.jobs.request import Drawing

    for preset in speed.presets():
        Drawing(prompt="a", preset=preset)
    assert speed.settings_of(["QWEN_SAVINGS=none"]) == {"QWEN_SAVINGS": "none"}
    with pytest.raises(SystemExit, match="no setting QWEN_NONSENSE"):
        speed.settings_of(["QWEN_NONSENSE=1"])
    parts = speed.parts_of(options(speed, "--set", "QWEN_SAVINGS=none", "--tasks", "edit"), NOTHING_HERE)
    assert [part.name for part in parts] == ["edit QWEN_SAVINGS=none", "edit QWEN_SAVINGS=none tiny"]
    assert parts[0].obstacle == "there is no GPU here" and not parts[1].obstacle
    whole = [row for row in parts[0].rows if row["whole"] and row["preset"] == "quality"]
    assert [(row["size"], row["steps asked"], row["contender"]) for row in whole] == [
        (1024, 50, "ours"), (1024, 50, "stock"),
    ]  # fmt: skip


def test_a_further_preset_has_rows_of_its_own(monkeypatch):
    monkeypatch.setattr(speed, "presets", lambda: ["quality", "fast"])
    (part, _) = speed.parts_of(options(speed, "--tasks", "generate"), NOTHING_HERE)
    fast = [row for row in part.rows if row["preset"] == "fast"]
    assert {row["size"] for row in fast} == {512, 768, 1024, 1328}
    assert all(row["contender"] == "ours" and row["whole"] and row["steps asked"] is None for row in fast)
