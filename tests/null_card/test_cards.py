"""The real worker on cards that have no arithmetic: every layout loads, draws, and takes what its plan says.

A few cards here, the whole table where the long proofs are asked for.
"""

import pytest

from tests.memory.test_placement import PLANS

from ..conftest import only_proved
from . import life
from .card import Card
from .cases import ADA, AMPERE_PRO, CASES, HOPPER, Case

SIDE = 1024
READ = ("tabled/generate", "tabled/edit")  # the modulation's rows lie beside the weights: loaded seconds sooner
READ_PLUS = ("tabled/generate", "tabled/edit_plus")
MARGIN = 0.10  # of what is predicted, that a job's peak may be off
SMALL_MARGIN = 0.05  # the same, of a job whose own room is a fifth of its peak
PINNED_MARGIN = 0.01  # of what is planned, that pinned memory may be off
SETTLES = 8 << 20  # bytes that the card may hold more after many jobs: what is fetched ahead of a streamed text encoder
PAGE = 20 << 20  # bytes: torch compares a request with its cap, and then takes whole pages of an expandable segment
PROCESS = 3_000_000_000  # bytes of the host's memory that such a process may really take
# NF4, transformers swapped, and a card that the plan fills. A card on which everything stays as it is asks less.
SAMPLE = (Case(Card(16.9, ADA, 31), READ), pytest.param(Case(Card(80, HOPPER, 64), READ), marks=only_proved))


def require_life(found):
    """What must be so on every card."""
    for row in found["rows"]:
        where = row["what"], row["task"], row["size"], row["references"]
        assert row["code"] == ("ok" if row["fits"] else "out_of_memory"), (*where, row["words"])
        assert row["reserved"] < found["limit"] + PAGE and not (row["fits"] and row["out_of_memory"]), where
    assert all(taken["reserved"] < found["limit"] + PAGE for taken in found["loading"].values())
    assert found["stopped"] and found["without room"] == "out_of_memory"
    assert all(words.startswith("out_of_memory") and "may be used" in words for words in found["refused"])
    assert set(found["after"]) <= {"ok"}
    assert found["resident"] < PROCESS
    before, after = found["held"]
    assert after["allocated"] - before["allocated"] < SETTLES
    assert {**before, "allocated": 0} == {**after, "allocated": 0}


def require_figures(found):
    """Peaks as predicted, and pinned memory as planned, once all models are loaded.

    A job's LoRA is pinned beside the plan, and stays for the next job that brings it.
    """
    *_, again, lora, _, _ = found["rows"]
    assert lora["what"] == "with a LoRA" and again["what"] == "the other model again"
    assert again["pinned"] == pytest.approx(found["pinned"], rel=PINNED_MARGIN)
    last = [row for row in found["rows"] if row["fits"] and row["models"] == again["models"]]
    assert last
    for row in last:
        assert row["allocated"] == pytest.approx(row["predicted"], rel=MARGIN), row


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_a_worker_lives_on_the_card_as_planned(on_card, case):
    found = on_card(life.live, case.card, case.models, case.compiled, 2, True)  # each task at one size
    require_life(found)
    require_figures(found)


@only_proved
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_card_and_task_of_the_table(on_card, case):
    found = on_card(life.live, case.card, case.models, case.compiled, 50, seconds=3600)
    require_life(found)
    if len(case.models) > 1:
        require_figures(found)


@only_proved
@pytest.mark.parametrize(
    "card", [Card(24, ADA, 64), Card(24, AMPERE_PRO, 64), Card(47.7, ADA, 62), Card(47.7, AMPERE_PRO, 62)], ids=str
)
def test_a_lora_in_eight_bits_is_compiled_at_the_start_and_takes_the_room_that_is_planned_for_it(on_card, card):
    found = on_card(life.draw_with_loras, card, ("tabled/edit", "tabled/generate"), 20, seconds=1200)
    assert len(set(found["graphs"])) == 1 and not found["failures"], found
    for row in found["rows"]:
        # The matrices of the modulation are on the card whole, and take more of it than a full plan leaves.
        assert row["code"] == "ok" and row["tiled"] <= (row["what"] == "with a LoRA" and card.gigabytes > 24), row
        assert row["allocated"] < row["predicted"] * (1 + MARGIN), row


def test_the_table_has_every_size_of_card_that_placement_is_tested_for():
    planned = {round(gigabytes) for (gigabytes, _), *_ in PLANS}
    assert {round(case.card.gigabytes) for case in CASES} == planned
    assert {case.card.capability for case in CASES} >= {capability for (_, capability), *_ in PLANS}


@pytest.mark.parametrize(
    "card",
    [
        Card(16.6, AMPERE_PRO, 31),
        *(pytest.param(Card(47.7, *host), marks=only_proved) for host in ((ADA, 128), (ADA, 62), (AMPERE_PRO, 62))),
    ],
    ids=str,
)
def test_jobs_in_turn_never_run_out_of_a_card_that_the_plan_fills(on_card, card):
    """A plan leaves these cards 0.2 GB at the most: without expandable segments the decoder finds no room."""
    jobs = [("generate", SIDE, SIDE, 0), ("edit", SIDE, SIDE, 1)] * 2
    rows = on_card(life.draw_in_turn, card, READ, jobs)
    assert [(row["code"], row["out_of_memory"]) for row in rows] == [("ok", 0)] * len(jobs), rows


@pytest.mark.parametrize(
    "card", [Card(24, ADA, 64), pytest.param(Card(24, AMPERE_PRO, 64), marks=only_proved)], ids=["fp8", "int8"]
)
def test_an_edit_in_eight_bits_takes_the_room_that_is_planned_for_it(on_card, card):
    (row,) = on_card(life.draw_in_turn, card, READ_PLUS, [("edit", SIDE, SIDE, 3)])
    assert row["code"] == "ok"
    assert row["allocated"] == pytest.approx(row["predicted"], rel=SMALL_MARGIN), row
