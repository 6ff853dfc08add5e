"""From the second card's start to the meeting of both ranks: whichever fails, and at what, the first draws alone."""

import json
import sys

import pytest

from ..conftest import only_proved
from ..support.patience import run_to_its_end

CANNOT_LOAD, PROCESS = "the second card cannot load model: a planted error", "the second card's process: "
FAILED = f"{PROCESS}RuntimeError: a planted error"
FAULTS = {  # what is planted on the second card, and the reason that the first one draws alone
    "load": ("rank.load = rank.join = rank.reach = group.join = spoiled", CANNOT_LOAD),
    "complete": ("rank.complete = rank.join = rank.reach = group.join = spoiled", CANNOT_LOAD),
    "it ends as it completes": ("rank.complete = end", f"{PROCESS}it has ended"),
    "its way to the store": ("group.reach_store = fail", FAILED),
    "the meeting": ("group.join = fail", FAILED),
    "the meeting, by CUDA": ("group.join = spoiled", f"{PROCESS}a planted error"),
    "it ends as both meet": ("group.join = end", f"{PROCESS}it has ended"),
}
FIRST_FAULTS = {  # the same of the first card
    "its store": ("group.open_store = fail", "", FAILED),
    "its part in the meeting": ("group.join = fail", "", f"{PROCESS}a planted error"),
    "no thread for the channel": ("channel.threading.Thread.start = fail", "", FAILED),
    "too late, while the second computes": (
        "second_card.JOIN_SECONDS = 3.0",
        "group.join = compute",
        f"{PROCESS}it has not met the first within 3 seconds",
    ),
}
CASES = {name: ("", *fault) for name, fault in FAULTS.items()} | FIRST_FAULTS
SAMPLE = "load", "the meeting, by CUDA", "it ends as both meet", "its part in the meeting"


def outcome_of(*planted):
    """What came of two loads of a model. Raises `AssertionError` where nothing moves any more."""
    process = run_to_its_end([sys.executable, "-m", "tests.support.meeting_ranks", *planted])
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [pytest.param(*case, id=name, marks=() if name in SAMPLE else only_proved) for name, case in CASES.items()],
)
def test_a_card_that_fails_before_both_have_met_leaves_the_first_alone(first, second, reason):
    assert outcome_of(first, second) == {"loaded": [False, False], "state": reason, "ended": [], "lives": False}


def test_cards_that_meet_do_so_once():
    assert outcome_of("", "") == {"loaded": [True, True], "state": "on", "ended": [], "lives": True}


def test_what_is_sent_takes_no_memory_once_the_other_rank_was_told():
    import torch

    from qwen_worker.ranks import group

    tensors = []
    group.pack([torch.ones(1).expand(4), (torch.zeros(2, 3).T,)], tensors)
    assert [tensor.is_contiguous() for tensor in tensors] == [True, True]
