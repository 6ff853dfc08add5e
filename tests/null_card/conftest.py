"""Null cards for the tests of this folder, or the reason why this machine has none."""

import pytest

from .card import Processes, why_not


@pytest.fixture(scope="session")
def needs_card():
    """Skips the test where this machine can have no null card."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def on_card(needs_card):
    """on_card(function, card, *arguments): what the function returns in a process that has the card."""
    with Processes() as processes:
        yield processes.call
