"""Null cards for the tests of this folder, or the reason why this machine has none."""

import os

import pytest

from .card import Processes, why_not

PROVE = "NULL_CARD_PROVE"  # until pytest has an option for the long proofs


def proves() -> bool:
    """Whether the long proofs are asked for."""
    return bool(os.environ.get(PROVE))


@pytest.fixture(scope="session")
def on_card():
    """on_card(function, card, *arguments): what the function returns in a process that has the card."""
    if reason := why_not():
        pytest.skip(reason)
    with Processes() as processes:
        yield processes.call
