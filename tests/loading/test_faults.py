"""What of the worker's own fails costs itself: each fault of the list, the reply to the job that met it, and the next.

A sample of each kind here, and all of them where the long proofs are asked for.
"""

import json

import pytest

from ..null_card.card import why_not
from .faults import FAULTS, RESULTS, meetings

# The first fault of each place, and all that spoil CUDA as far as the worker can ask. Each on a card takes a process of
# its own: tests/null_card has a sample of those.
QUICK = [fault for fault in FAULTS if fault.card is None]
FIRST = {fault.where: fault for fault in reversed(QUICK)}
SAMPLE = [fault for fault in QUICK if FIRST[fault.where] is fault or fault.spoils]


@pytest.fixture(scope="module")
def met():
    with meetings() as meet:
        yield meet


def require(fault, row):
    """What the list says of the fault."""
    first, after = row["first reply"], row["next reply"]
    if fault.stock:
        assert first.startswith("a stand-in: ") and after.startswith("a stand-in: "), row
        assert set(row["health"]) == {"generate model"}
        return
    assert first.startswith(f"{fault.code}: " if fault.code else "a picture"), row
    assert after.startswith("a picture"), row
    assert sorted(row["health"]) == sorted(fault.off), row
    assert ("a fresh worker is asked for" in first) == fault.spoils, row
    assert all(row["health"].values()) and "/srv" not in json.dumps(row)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_costs_itself_and_the_next_job_is_drawn(fault, met, pytestconfig):
    if fault not in SAMPLE and not pytestconfig.getoption("--prove"):
        pytest.skip("a long proof, which --prove asks for")
    if fault.card and (reason := why_not()):
        pytest.skip(reason)
    require(fault, met(fault))


def test_the_list_has_thirty_faults_and_only_what_stops_stock_too_ends_in_a_stand_in():
    met = {(repr(fault.error), fault.seams, fault.phase, tuple(fault.fields.items())) for fault in FAULTS}
    assert len(met) >= 30 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.name for fault in FAULTS if fault.code == "stand-in"} == {
        fault.name for fault in FAULTS if fault.stock
    }


def test_the_recorded_table_has_every_fault_and_is_what_the_list_says():
    rows = json.loads(RESULTS.read_text())["faults"]
    assert [row["fault"] for row in rows] == [fault.name for fault in FAULTS]
    for fault, row in zip(FAULTS, rows, strict=True):
        assert row["where"] == fault.where and row["stock"] == (fault.stock or "runs")
        require(fault, row)
