"""The card's memory, seen from both sides, with torch's calls replaced."""

import pytest
import torch

from .conftest import GB


def test_the_cap_and_the_context_are_counted_from_both_sides(fake_card, monkeypatch):
    from benchmarks.measure.card_memory import Card

    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    card = Card(24)
    card.set_cap()
    assert fractions == [pytest.approx((24 * GB - 2**30) / (85 * GB))]
    fake_card[0] -= 20.6 * GB
    assert card.peaks() == {
        "allocated peak GB": 19, "reserved peak GB": 21, "context GB": 0.6, "peak GB": 21.6, "pinned GB": 28,
        "times full": 3,
    }  # fmt: skip
    assert card.weights_gb([]) == 13.77
    Card(None).set_cap()
    assert len(fractions) == 1  # no cap, no limit
