"""The worker's life on a card: memory that runs out, pins that are refused, jobs in turn, a second start.

On the null card the same functions show that the tests themselves run; it has memory, and no numbers.
"""

import json
import sys

from ..conftest import environment_of
from ..support.patience import run_to_its_end
from . import seen

JOBS, SETTLED = 20, 4  # in turn, and after how many nothing is new any more


def test_a_job_that_finds_the_card_full_ends_as_planned_and_the_next_is_drawn(see, tmp_path):
    found = see(seen.see_job_without_room, str(tmp_path))
    assert found["replies"] == ["ok", "out_of_memory", "ok"], found["words"]
    assert found["ran out"] >= 2 and "did not fit beside" in found["words"]


def test_a_load_that_finds_the_card_full_says_so_and_the_next_one_loads(see, tmp_path):
    found = see(seen.see_load_without_room, str(tmp_path))
    assert found["replies"] == ["model_unavailable", "ok"], found["words"]
    assert "out of memory" in found["words"] or "GB" in found["words"], found["words"]


def test_what_is_held_does_not_grow_from_job_to_job(see, tmp_path):
    held = see(seen.see_jobs_in_turn, str(tmp_path), JOBS)
    assert len(held) == JOBS
    first, last = held[SETTLED], held[-1]
    assert max(one["reserved"] for one in held[SETTLED:]) == first["reserved"], held
    assert last["pinned"] == first["pinned"] and last["allocated"] == held[-3]["allocated"], held


def test_a_pin_that_is_refused_spoils_nothing(see):
    found = see(seen.see_refused_pin)
    assert found["refused"] and not found["spoiled"], found
    assert found["then"] == [False, True, 3]


def test_a_second_start_compiles_nothing(real_card, tiny, tmp_path):
    """Counted by torch. The processor's two starts are those of tests/speed."""
    command = [sys.executable, "-m", "tests.support.compiled_start", str(tmp_path / "kept"), "bf16:2"]
    found = []
    for number in range(2):
        caches = {name: str(tmp_path / f"{name}-{number}") for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        ended = run_to_its_end(command, env=environment_of(tiny, tmp_path, **caches))
        assert ended.returncode == 0, ended.stderr
        (load,) = json.loads(ended.stdout.splitlines()[-1])
        found.append(load)
    first, second = found
    assert first["compiled"] >= 1 and first["found"] == 0 and first["kept"]
    assert second["compiled"] == 0 and second["found"] == first["compiled"] and not second["kept"]
    for load in found:
        assert all(all(checks.values()) and checks["compile"] for checks in load["checks"].values()), load
