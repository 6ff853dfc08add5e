"""Files of this machine that cannot be read or written: a sentence, or nothing, and never a traceback."""

import pytest

from qwen_deploy.records import Records

from .conftest import OLD, SHIP

TIMING = {
    "task": "generate",
    "card": "NVIDIA H200",
    "seconds": 9.0,
    "load": 0.0,
    "pictures": 1,
    "size": None,
    "steps": 8,
}


def test_lines_that_are_no_timings_are_read_past(tmp_path):
    records = Records(tmp_path, "key")
    records.add_timing("ep1", TIMING)
    with (tmp_path / "ep1/timings.jsonl").open("ab") as file:
        file.write(b'{"task": "gen\n[1]\n{"task": "edit"}\n\xff\n')
    records.add_timing("ep1", TIMING)
    assert records.timings("ep1") == [TIMING, TIMING]
    assert [path.name for path in (tmp_path / "ep1").iterdir()] == ["timings.jsonl"]


@pytest.mark.parametrize("arguments", [("send", "a fox"), SHIP])
def test_a_folder_for_pictures_that_takes_none_is_named(runpod, command, tmp_path, arguments):
    endpoint = runpod.add()
    (tmp_path / "out").write_text("a file")
    code, text = command(*arguments)
    assert code == 1 and "The picture cannot be saved as" in text and "(--output)" in text
    assert endpoint["image"] == OLD


def test_a_job_is_done_although_its_seconds_cannot_be_kept(runpod, command, tmp_path):
    runpod.add()
    (tmp_path / "state").write_text("a file")
    code, text = command("send", "a fox")
    assert code == 0 and "seed" in text
