"""Which layouts are measured on which cards: what is planned for each, and what cannot be measured here."""

import pytest

from benchmarks.measure import full_size, layouts, stock
from benchmarks.measure.contenders import Ours
from benchmarks.measure.layouts import Case

from .conftest import GB, NOTHING_HERE, machine


def test_a_larger_card_stands_in_for_a_smaller_one_of_the_architecture_that_is_asked():
    for asked, precision in ((None, "fp8"), ("ampere", "int8"), ("ada", "fp8")):
        case = Case("ours", 24, ("generate",))
        seen = layouts.machine_for(case, machine(), asked)
        plan, refused = layouts.plan_for(case, seen)
        assert not refused and plan.precision.value == precision and plan.limit_bytes == 24 * GB
        assert "as a card of 24 GB" in seen.gpu.name
    assert layouts.machine_for(Case("ours", 80), machine(ram=128), ram_gb=20).ram_available_bytes == 20 * GB


def test_our_worker_plans_for_the_card_that_it_is_told_of():
    ours = Ours(full_size.TINY, layouts.TASKS, lambda: machine(gb=24), QWEN_VRAM_GB=16)
    plan = ours.worker.pipelines.place("generate")
    assert plan.device == "cuda" and plan.limit_bytes == 16 * GB


def reason(case, real, architecture=None, installed=lambda name: True):
    plan, refused = layouts.plan_for(case, layouts.machine_for(case, real, architecture))
    assert not refused
    return layouts.obstacle(case, real.gpu, plan if case.contender == "ours" else None, installed)


A100 = machine("NVIDIA A100-SXM4-80GB", 85.5, (8, 0))


@pytest.mark.parametrize(
    ("case", "real", "installed", "why"),
    [
        (Case("ours", 24), NOTHING_HERE, True, "there is no GPU here"),
        (Case("ours", 141), machine(), True, "NVIDIA H100 80GB HBM3 has 85.5 GB"),
        (Case("stock", 141), machine(), True, "NVIDIA H100 80GB HBM3 has 85.5 GB"),
        (Case("ours", 24, ("generate",)), A100, True, "NVIDIA A100-SXM4-80GB does not run fp8 products"),
        (Case("ours", 24), machine("Tesla T4", 85.5, (7, 5)), True, "Tesla T4 does not compute in bfloat16"),
        (Case("ours", 16, ("generate",)), machine(), False, "bitsandbytes is not installed"),
        (Case("ours", 24, ("generate",)), machine(), False, "torchao is not installed"),
        (Case("ours", 80), machine(), False, ""),
        (Case("ours", 24, ("generate",)), machine(), True, ""),
    ],
)
def test_what_the_real_card_cannot_run_is_not_measured(case, real, installed, why):
    assert reason(case, real, installed=lambda name: installed) == why
    assert layouts.obstacle(Case("ours", None), real.gpu, None, lambda name: None) == ""  # all of this machine


def test_stock_is_loaded_the_fastest_way_that_fits():
    ways = {cap: layouts.way_of(Case("stock", cap, ("generate",)), 1024) for cap in (141, 80, 48, 32)}
    assert ways == {141: stock.RESIDENT, 80: stock.RESIDENT, 48: stock.BY_MODEL, 32: stock.BY_LAYER}
    # 57.7 GB of weights, 1 of context, 0.4 of torch's, 3.38 GiB to decode; or one model at a time.
    peaks = layouts.stock_peaks("generate", 1024)
    assert peaks[stock.RESIDENT] / GB == pytest.approx(57.7 + 1.4 + 3.63, rel=0.002)
    assert peaks[stock.BY_MODEL] / GB == pytest.approx(40.86 + 1.4 + 0.39, rel=0.002)


def test_caps_that_no_case_is_of_are_served_too():
    assert [case.name for case in layouts.cases_for_caps([40, 16])] == [
        "ours-16-generate", "ours-16-edit", "ours-16-both", "ours-40-both",
    ]  # fmt: skip
