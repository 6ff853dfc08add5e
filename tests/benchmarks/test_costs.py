"""The page of cards: what each figure is known by, and the page as its command writes it."""

import json
import sys

import pytest

from benchmarks import cards_page, costs

from ..conftest import ROOT
from ..support.patience import run_to_its_end
from .conftest import fit_row, speed_row

RESULTS = ROOT / "benchmarks/results"


def test_the_page_of_cards_is_what_its_command_writes(tmp_path):
    page, output = tmp_path / "cards.md", tmp_path / "costs.json"
    command = [sys.executable, "-m", "benchmarks", "costs", "--page", str(page), "--output", str(output)]
    done = run_to_its_end(command)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs/cards.md").read_text()
    committed, written = (json.loads(path.read_text())["rows"] for path in (RESULTS / "costs.json", output))
    assert committed == written


RATIOS = {"edit": 2.83, "one": 2.37, "two": 4.17}
CARDS = {card.name: card for card in costs.CARDS}


def figure(name, fit_rows=(), speed_rows=(), task="generate", preset="quality"):
    found = costs.figure_of(CARDS[name], task, preset, list(fit_rows), list(speed_rows))
    return round(found.seconds, 3), found.basis


def test_figures_are_measured_scaled_or_computed():
    assert figure("H100") == (18.5, "computed")
    assert figure("H100", task="edit") == (round(18.5 * 198 / 70, 3), "computed")
    measured = [speed_row()]
    assert figure("H100", speed_rows=measured) == (0.5 + 0.4 + 0.1 + 50 * 0.2, "measured")
    assert figure("H100", speed_rows=[*measured, speed_row(whole=True, steps=50, **{"job s": 12.0})]) == (
        12,
        "measured",
    )
    assert figure("A100", speed_rows=measured) == (round(11 * 989 / 312, 3), "scaled from H100")
    # Under the card's own memory, where fit has it: a 4090 is not scaled from an unquantized layout.
    capped = [fit_row(24, **{"step s": 0.3})]
    assert figure("RTX 4090", capped, measured) == (round(16 * 989 / 165, 3), "scaled from H100")
    assert figure("L40S", capped, measured) == (round(11 * 989 / 362, 3), "scaled from H100")
    on_the_card = [fit_row(24, device="NVIDIA GeForce RTX 4090", **{"step s": 1.0})]
    assert figure("RTX 4090", on_the_card + capped, measured) == (51, "measured")


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint": "tiny"}, {"measured": "failed: out of memory"}, {"size": 512}, {"contender": "stock"},
        {"settings": "QWEN_SAVINGS=none"}, {"device": None}, {"device": "CPU"}, {"preset": "fast"},
    ],
)  # fmt: skip
def test_what_is_no_measure_of_the_card_counts_for_nothing(fields):
    assert figure("H100", speed_rows=[speed_row(**fields)]) == (18.5, "computed")


def test_a_card_s_name_is_a_word_of_its_device():
    assert costs.is_card("NVIDIA A40", CARDS["A40"]) and not costs.is_card("NVIDIA RTX A4000", CARDS["A40"])
    assert costs.is_card("NVIDIA RTX PRO 6000 Blackwell Server Edition", CARDS["RTX PRO 6000"])


def test_the_page_keeps_what_is_measured_and_what_is_computed_apart():
    fast = speed_row(preset="fast", whole=True, steps=8, passes=8, **{"job s": 1.4})
    rows = [costs.row_of(card, preset, [], [fast]) for preset in costs.presets([fast]) for card in costs.CARDS]
    peak = {"predicted peak GB": 17.5, "plan": "fp8 on cuda"}
    fitted = [
        fit_row(**peak, **{"peak GB": 16.9}),
        fit_row(**peak, measured="failed: out of memory", size=1328),
        fit_row(80, **peak, measured="not measured: not yet", device=None),
    ]
    stock_row = speed_row(contender="stock", **{"job s": 4.0, "step s": 0.4})
    ours_row = speed_row(**{"floor step s": 0.177, "of stock": 0.57})
    page = cards_page.page(rows, fitted, [ours_row, stock_row], RATIOS)
    measured, computed = page.split("## Computed")
    assert "| generate | 1024 | quality | 8 | 2.6 | 4 | 0.2 | 0.4 | 0.177 | 0.57 |" in measured
    assert "| ADA_80_PRO | H100 | 4.18 | fast | 1.4 s, $0.002 |  |" in measured
    assert "| ADA_80_PRO | H100 | 4.18 | fast |  | 4.2 s, $0.005 |" in computed
    assert "| AMPERE_80 | A100 | 2.74 | fast | 4.4 s, $0.003, scaled from H100 |" in computed
    assert "a picture by `fast` on RTX A4000" in computed and "an edit by `quality` on B200" in computed
    assert "| ours-24-generate | generate | fp8 | 17.5 / 17.5 | 16.9 / failed | 0.2 | NVIDIA H100 80GB HBM3 |" in page
    assert "not measured" not in page and "ours-80" not in page


@pytest.mark.parametrize("fields", [{"checkpoint": "tiny"}, {"measured": "failed: out of memory"}])
def test_a_preset_that_no_card_has_drawn_is_not_on_the_page(fields):
    assert costs.presets([speed_row(preset="fast", **fields)]) == ["quality"]


def test_a_page_of_no_measurement_says_so():
    rows = [costs.row_of(card, "quality", [], []) for card in costs.CARDS]
    page = cards_page.page(rows, [fit_row(measured="not measured: not yet", device=None)], [], RATIOS)
    assert page.split("## Measured\n\n")[1].startswith("No card has been measured yet.\n\n## Computed\n")
    assert page.count("| quality |") == len(costs.CARDS)
