"""The script that measures on a GPU."""

import re
import subprocess
from types import SimpleNamespace

from benchmarks import fit, speed
from benchmarks.measure import layout_run, layouts, raw_read

from ..conftest import ROOT
from .conftest import options


def test_what_lies_in_memory_is_not_said_to_be_dropped(tmp_path, monkeypatch):
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="tmpfs")]
    monkeypatch.setattr(raw_read.psutil, "disk_partitions", lambda all: mounts)
    there, elsewhere = tmp_path / "folder/model.safetensors", tmp_path.parent / "model.safetensors"
    assert layout_run.cache_state([elsewhere, there], True) == "files on a RAM disk"
    assert [layout_run.cache_state([elsewhere], cold) for cold in (True, False)] == ["dropped", "as it was"]


def test_the_script_for_a_gpu_names_parts_that_there_are():
    script = (ROOT / "benchmarks/on_gpu.sh").read_text()
    known = {case.name for case in layouts.CASES}
    measured = re.findall(r"^measure (fit|speed)(.*)$", script, re.MULTILINE)
    assert len(measured) > 5
    for benchmark, words in measured:
        parsed = options({"fit": fit, "speed": speed}[benchmark], *words.split())
        assert set(parsed.part or ()) <= known
    first, *_ = re.findall(r"^(?:prove|measure .*)$", script, re.MULTILINE)
    assert first == "measure speed --tasks generate --sizes 1024 512"  # a machine may be lent for nine minutes alone
    assert subprocess.run(["bash", "-n", "benchmarks/on_gpu.sh"], cwd=ROOT).returncode == 0
