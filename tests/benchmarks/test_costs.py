"""The table of seconds and the page of cards: as their commands write them, and what each figure is known by."""

import json
import re
import sys

import pytest

from benchmarks import cards_page, computed, costs, rates
from benchmarks.__main__ import main
from qwen_deploy.estimates import COMPUTED, MEASURED, Drawing, SecondsTable

from ..conftest import ROOT
from .conftest import fit_row, speed_row

TABLE = ROOT / "benchmarks/results/computed.json"
CARDS = {card.name: card for card in rates.CARDS}
QUALITY = Drawing("Qwen/Qwen-Image", "generate", "quality", 50)
H100, BF16 = "NVIDIA H100 80GB HBM3", "bf16, modulation table"


@pytest.fixture
def write(monkeypatch):
    """write(*words): a command of the benchmarks, in this process: one of its own imports torch for two constants."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        main()

    return run


@pytest.mark.parametrize(("name", "file"), [("computed", TABLE), ("costs", ROOT / "docs/cards.md")])
def test_the_table_and_the_page_are_what_their_commands_write(tmp_path, write, name, file):
    write(name, "--output", str(tmp_path / "written"))
    assert (tmp_path / "written").read_text() == file.read_text()


def written(tmp_path, write, fit=(), speed=()):
    """The table of a checkout where these rows were recorded."""
    for name, rows in (("fit", fit), ("speed", speed)):
        runs = {str(number): {"device": row["device"]} for number, row in enumerate(rows)}
        numbered = [row | {"run": str(number)} for number, row in enumerate(rows)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"runs": runs, "rows": numbered}))
    files = [f"--{name}={tmp_path / name}.json" for name in ("fit", "speed")]
    write("computed", "--output", str(tmp_path / "table.json"), *files)
    return SecondsTable(tmp_path / "table.json")


PLAN = {"plan": "bf16 on cuda, weights 60 GB, modulation table, peak 70 of 80 GB"}


def test_what_a_card_has_measured_counts_before_what_is_computed(tmp_path, write):
    computed_here = SecondsTable().job(H100, BF16, QUALITY)
    assert computed_here.basis == COMPUTED and 9 < computed_here.seconds < 13
    row = speed_row(**PLAN)  # 8 steps of 0.2 s beside 1 s
    table = written(tmp_path, write, speed=[row, speed_row(**PLAN, whole=True, steps=50, **{"job s": 12.0})])
    assert (figure := table.job(H100, BF16, QUALITY)).seconds == 12 and figure.basis == MEASURED
    assert table.job("NVIDIA H200", BF16, QUALITY).basis == COMPUTED
    assert table.job(H100, "bf16", QUALITY).basis == COMPUTED  # another layout
    assert written(tmp_path, write, speed=[row]).job(H100, BF16, QUALITY).seconds == 11
    assert written(tmp_path, write, fit=[fit_row(80, **PLAN)]).job(H100, BF16, QUALITY).seconds == 11


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint": "tiny"}, {"measured": "failed: out of memory"}, {"size": 512}, {"contender": "stock"},
        {"settings": "QWEN_SAVINGS=none"}, {"device": None}, {"device": "CPU"}, {"preset": "fast"},
    ],
)  # fmt: skip
def test_what_is_no_measure_of_the_card_counts_for_nothing(fields):
    assert not list(computed.measured_jobs([], [speed_row(**PLAN, **fields)]))
    assert not list(computed.measured_jobs([fit_row(24, **PLAN)], []))  # under another card's memory


@pytest.mark.parametrize(("device", "card"), [
    ("NVIDIA A40", "A40"), ("NVIDIA RTX A4000", "RTX A4000"), ("NVIDIA H100 PCIe", "H100 PCIe"), (H100, "H100"),
    ("NVIDIA L40S", "L40S"), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
    ("NVIDIA RTX 9090", None), (None, None),
])  # fmt: skip
def test_a_card_s_name_is_a_word_of_its_device(device, card):
    assert (found := rates.card_of(device)) is (CARDS[card] if card else None), found
    assert device is None or SecondsTable().card_of(device) == card


def test_seconds_are_arithmetic_over_rates_and_a_stream_waits_for_its_way():
    """The H100's figures by hand: counted TFLOP, the rates of `rates.py`, and bytes over bandwidths."""
    card = CARDS["H100"]
    resident, streamed = (
        next(plan for plan in computed.layouts_of(card) if computed.describe_layout(plan) == words)
        for words in (BF16, f"{BF16}, text encoder streamed")
    )
    rows = json.loads((ROOT / "benchmarks/results/step.json").read_text())["rows"]
    named = {"kind": "generate", "size": 1024, "contender": "ours", "precision": "bf16"}
    (row,) = [row for row in rows if named.items() <= row.items()]
    rates_of = {"product": 790e12, "attention": 600e12, "elementwise": 1}
    one_step = sum(
        count * max(flops / rates_of[kind], size / (3350e9 * 0.85)) for kind, count, flops, size, *_ in row["works"]
    )
    assert computed.pass_seconds(card, resident, "generate") == pytest.approx(one_step / 2)
    assert 1.5 * (56.0 / 790 + 12.7 / 600) > one_step / 2 > 56.0 / 790 + 12.7 / 600  # the arithmetic alone
    whole = next(plan for plan in computed.layouts_of(card) if not plan.table)
    modulation = 13.59 / 3350 / 0.85  # GB that are read in each pass without the table
    assert computed.pass_seconds(card, whole, "generate") == pytest.approx(one_step / 2 + modulation, rel=1e-3)
    apart, on_card = (computed.other_seconds(card, plan, "generate", True) for plan in (streamed, resident))
    assert apart - on_card == pytest.approx(2 * (15.5 / 50 - 1.2 / 790))
    slow_bus = rates.Card("ADA_80_PRO", "H100", 80, 790, 1245, 600, 3350, pcie=5)
    assert computed.other_seconds(slow_bus, streamed, "generate", True) > 2 * 15.5 / 5


def test_steps_beside_the_preset_s_cost_their_passes():
    table = SecondsTable()
    four, eight = (table.job(H100, BF16, Drawing("m", "generate", "fast", steps)).seconds for steps in (4, 8))
    assert eight - four == pytest.approx(4 * table.rows["H100", BF16]["generate"]["pass"])


def test_a_start_in_eight_bits_compiles_for_jobs_loras_too():
    """H100: its table of the modulation takes 6 s, a process 15 s and each graph 30 s."""
    rows = {plan: row["prepare"] for (card, plan), row in SecondsTable().rows.items() if card == "H100"}
    graphs = {name: round((rows[f"{name}, modulation table"] - 21) / 30, 1) for name in ("bf16", "fp8", "int8", "nf4")}
    assert graphs == {"bf16": 2, "fp8": 4, "int8": 6, "nf4": 2}


def test_every_priced_pool_is_in_the_table_in_the_layout_that_it_gets():
    for offer in costs.offers_of({}):
        assert all(offer.seconds.values()) and not offer.unknown, offer.fit.pool.id


def test_the_page_keeps_what_is_measured_and_what_is_computed_apart():
    peak = {"predicted peak GB": 17.5, "plan": "fp8 on cuda"}
    fitted = [
        fit_row(**peak, **{"peak GB": 16.9}),
        fit_row(**peak, measured="failed: out of memory", size=1328),
        fit_row(80, **peak, measured="not measured: not yet", device=None),
    ]
    stock_row = speed_row(contender="stock", **{"job s": 4.0, "step s": 0.4})
    ours_row = speed_row(**{"floor step s": 0.177, "of stock": 0.57})
    rows = [costs.row_of(offer, offer) for offer in costs.offers_of({})]
    facts = {"prices_of": "June 2026", "auto": "ADA_80_PRO", "plus": 0.84, "presets": "## Presets on each card"}
    page = cards_page.page(rows, fitted, [ours_row, stock_row], facts)
    measured, takes = page.split("## What a picture takes and costs")
    takes, _ = takes.split("## Presets on each card")
    assert "| generate | 1024 | quality | 8 | 2.6 | 4 | 0.2 | 0.4 | 0.177 | 0.57 |" in measured
    assert "| ours-24-generate | generate | fp8 | 17.5 / 17.5 | 16.9 / failed | 0.2 | NVIDIA H100 80GB HBM3 |" in page
    assert "not measured: not yet" not in page and "ours-80" not in page
    assert len(re.findall(r"^\| \w+_\d+.*\| computed \|$", takes, re.M)) == len(rates.PRICES)
    assert cards_page.page(rows, [], [], facts).count("No card has been measured yet.") == 1
