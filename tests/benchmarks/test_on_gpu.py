"""The script that measures on a GPU."""

import re
import subprocess

from benchmarks import fit, speed
from benchmarks.measure import layouts

from ..conftest import ROOT
from .conftest import options


def test_the_script_for_a_gpu_names_parts_that_there_are():
    script = (ROOT / "benchmarks/on_gpu.sh").read_text()
    known = {case.name for case in layouts.CASES}
    measured = re.findall(r"^measure (fit|speed)(.*)$", script, re.MULTILINE)
    assert len(measured) > 5
    for benchmark, words in measured:
        parsed = options({"fit": fit, "speed": speed}[benchmark], *words.split())
        assert set(parsed.part or ()) <= known
    assert subprocess.run(["bash", "-n", "benchmarks/on_gpu.sh"], cwd=ROOT).returncode == 0
