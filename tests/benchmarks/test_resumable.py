"""Long benchmarks go on where they were ended: what is measured stays, a failure is told apart from a cut."""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.report import resumable
from benchmarks.report.rows import Record

from ..conftest import ROOT

CPU, OTHER = {"device": "CPU"}, {"device": "NVIDIA Test"}


@pytest.fixture
def record(tmp_path):
    """record(run): the record in one file, as a call with this run opens it."""
    return lambda run=CPU: Record(tmp_path / "rows.json", "test", ("number",), run)


@pytest.fixture
def slow_record(tmp_path, monkeypatch):
    """The same file, but recording a row takes an hour of the clock that parts are held to."""
    clock = SimpleNamespace(ahead=0, monotonic=lambda: time.monotonic() + clock.ahead)
    monkeypatch.setattr(resumable, "time", clock)

    class SlowRecord(Record):
        def add(self, row):
            super().add(row)
            clock.ahead += 3600

    return SlowRecord(tmp_path / "rows.json", "test", ("number",), CPU)


def options(**given):
    return argparse.Namespace(**{"part": None, "seconds": None, "again": False, "list": False} | given)


def part(work, count=3, name="part", **given):
    rows = tuple({"number": number} for number in range(count))
    return resumable.Part(name, rows, work, given.pop("arguments", {}), **given)


def run(chosen_part, record, limit=60, **given):
    chosen = options(**given)
    resumable.run([chosen_part], record, chosen, resumable.end_of(chosen), limit)


def measured(record):
    return {row["number"]: row["measured"] for row in record().rows}


# What parts do in their processes.


def send_all(send, todo, words="measured"):
    for row in todo:
        send(row | {"measured": words, "process": os.getpid()})


def send_words(send, todo, words):
    for row in todo:
        send(row | {"measured": words.get(row["number"], "measured")})


def send_one_and_wait(send, todo, gate):
    for row in todo:
        send(row | {"measured": "measured", "process": os.getpid()})
        while not os.path.exists(gate):
            time.sleep(0.02)


def send_one_and_crash(send, todo):
    send(todo[0] | {"measured": "measured"})
    sys.exit(3)


def test_a_call_that_is_killed_loses_only_what_it_had_not_finished(record, tmp_path):
    gate = tmp_path / "gate"
    program = (
        "import pathlib, sys; from tests.benchmarks import test_resumable as t\n"
        "if __name__ == '__main__':\n"
        "    path, gate = map(pathlib.Path, sys.argv[1:])\n"
        "    one = t.part(t.send_one_and_wait, arguments={'gate': gate})\n"
        "    t.run(one, t.Record(path, 'test', ('number',), t.CPU))\n"
    )
    (tmp_path / "call.py").write_text(program)
    command = [sys.executable, str(tmp_path / "call.py"), str(tmp_path / "rows.json"), str(gate)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    call = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
    while not (tmp_path / "rows.json").exists() or "measured" not in measured(record).values():
        assert call.poll() is None
        time.sleep(0.05)
    os.killpg(call.pid, signal.SIGKILL)
    call.wait()
    assert measured(record) == {0: "measured", 1: "not measured: not yet", 2: "not measured: not yet"}
    (before,) = [row["process"] for row in record().rows if row["number"] == 0]

    gate.touch()
    run(part(send_one_and_wait, arguments={"gate": gate}), record())
    assert set(measured(record).values()) == {"measured"}
    processes = [row["process"] for row in record().rows]
    assert processes[0] == before and before not in processes[1:]  # the first row was not measured again


def test_what_is_measured_is_measured_again_only_when_asked(record):
    run(part(send_all), record())
    first = record().rows
    run(part(send_all, arguments={"words": "other"}), record())
    assert record().rows == first
    run(part(send_all, arguments={"words": "other"}), record(), again=True)
    assert set(measured(record).values()) == {"other"}


def test_a_part_that_this_call_has_no_time_for_is_left_for_the_next(record, slow_record, tmp_path, capsys):
    run(part(send_all, seconds=10), record(), seconds=5)
    assert "left for the next call" in capsys.readouterr().out
    assert set(measured(record).values()) == {"not measured: not yet"}
    # Begun and cut off: what was measured stays, and nothing is called a failure.
    run(part(send_one_and_wait, arguments={"gate": tmp_path / "never"}), slow_record, limit=200, seconds=100)
    assert "with 2 of 3 to go: for the next call" in capsys.readouterr().out
    assert measured(record) == {0: "measured", 1: "not measured: not yet", 2: "not measured: not yet"}


def test_a_part_that_outlives_its_own_limit_or_ends_by_itself_has_failed(record, slow_record, tmp_path):
    run(part(send_one_and_wait, arguments={"gate": tmp_path / "never"}), slow_record, limit=100)
    assert measured(record) == {0: "measured", 1: "failed: not over after 100 s", 2: "failed: not over after 100 s"}
    run(part(send_one_and_crash), record(), again=True)
    assert measured(record)[2] == "failed: its process ended with exit code 3"
    run(part(send_all), record())  # a failure is not tried again by itself
    assert measured(record)[2] == "failed: its process ended with exit code 3"


def test_a_part_of_which_every_row_failed_is_measured_again_after_the_others(record, capsys):
    why = "failed: AttributeError while loading generate"
    parts = [
        part(send_all, name="broken", arguments={"words": why}),
        resumable.Part("whole", ({"number": 8}, {"number": 9}), send_all, {}),
    ]
    resumable.run(parts[:1], record(), options(), math.inf)
    assert set(measured(record).values()) == {why}
    assert "broken: 3 rows in" in (said := capsys.readouterr().out) and f"; 3 {why}" in said
    mended = replace(parts[0], arguments={})
    resumable.run([mended, parts[1]], record(), options(), math.inf)
    assert set(measured(record).values()) == {"measured"}
    said = capsys.readouterr().out
    assert said.index("whole: 2 rows") < said.index("broken: every row failed before") < said.index("broken: 3 rows")
    resumable.run([mended, parts[1]], record(), options(), math.inf)
    assert capsys.readouterr().out.splitlines() == ["broken: measured before", "whole: measured before"]


def test_a_model_that_did_not_load_has_another_try_and_one_that_does_not_fit_has_not(record, capsys):
    words = {0: "failed: TypeError while loading generate/speed-ups", 1: "failed: out of memory while loading: 2 GiB"}
    run(part(send_words, arguments={"words": words}), record())
    assert measured(record) == words | {2: "measured"}
    run(part(send_all), record())
    assert measured(record) == words | {0: "measured", 2: "measured"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("part: 1 rows in")


def test_what_cannot_be_measured_here_is_said_and_spoils_nothing(record):
    run(part(send_all), record(OTHER))
    run(part(send_all, count=4, obstacle="there is no GPU here"), record())
    assert measured(record) == dict.fromkeys(range(3), "measured") | {3: "not measured: there is no GPU here"}


def test_another_device_s_rows_stay_and_the_same_device_s_newest(record):
    run(part(send_all, count=1), record(OTHER))
    run(part(send_all, count=1), record())
    run(part(send_all, count=1, arguments={"words": "newer"}), record(OTHER | {"torch": "2"}))
    rows = [(record().device_of(row), row["measured"]) for row in record().rows]
    assert sorted(rows) == [("CPU", "measured"), ("NVIDIA Test", "newer")]
    report = json.loads(record().path.read_text())
    assert len(report["runs"]) == 2 and all(run["date"] for run in report["runs"].values())


def test_another_machine_around_the_same_card_goes_on(record):
    run(part(send_all, count=1), record(OTHER | {"driver": "1", "processor": "8 cores"}))
    first = record().rows
    run(part(send_all, count=1), record(OTHER | {"driver": "2", "processor": "16 cores"}))
    assert record().rows == first


def test_parts_are_chosen_by_name_and_listed(record, capsys):
    run(part(send_all), record(), list=True)
    assert set(measured(record).values()) == {"not measured: not yet"}
    with pytest.raises(SystemExit, match="no part nonsense; there are part"):
        run(part(send_all), record(), part=["nonsense"])
    assert resumable.end_of(options()) == math.inf
