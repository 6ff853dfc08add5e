"""The cards that the table is of: those that the worker is meant for, with the RAM that hosts have beside them.

Sizes are what CUDA tells of such cards, in 1e9 bytes. Pure. Knows nothing of torch.
"""

from dataclasses import dataclass, replace

from .card import Card

AMPERE, AMPERE_PRO, ADA, HOPPER, BLACKWELL = (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)
GENERATE, EDIT, EDIT_PLUS = "generate", "edit", "edit_plus"  # checkpoints; the last two serve the task edit


@dataclass(frozen=True)
class Case:
    """A card, the checkpoints of its endpoint, and whether their blocks are compiled, as they are by default."""

    card: Card
    models: tuple[str, ...]
    compiled: bool = False

    @property
    def name(self) -> str:
        card, (major, minor) = self.card, self.card.capability
        words = f"{card.gigabytes:g} GB {major}.{minor}, RAM {card.ram:g}: {' + '.join(self.models)}"
        return words + ", compiled" * self.compiled


BOTH, BOTH_PLUS = (GENERATE, EDIT), (GENERATE, EDIT_PLUS)
UNCOMPILED = tuple(
    Case(Card(gigabytes, capability, ram), models)
    for gigabytes, capability, ram, models in (
        (16, ADA, 64, (GENERATE,)),
        (16, ADA, 64, (EDIT,)),
        (16, AMPERE_PRO, 64, BOTH_PLUS),
        (16, AMPERE_PRO, 31, BOTH),
        (16.9, ADA, 31, BOTH_PLUS),
        (24, ADA, 16, (GENERATE,)),
        (24, ADA, 64, (GENERATE,)),
        (24, ADA, 64, (EDIT,)),
        (24, ADA, 64, BOTH_PLUS),
        (24, AMPERE_PRO, 64, (GENERATE,)),
        (24, AMPERE_PRO, 64, BOTH_PLUS),
        (32, BLACKWELL, 64, (GENERATE,)),
        (32, BLACKWELL, 128, BOTH_PLUS),
        (32, BLACKWELL, 64, BOTH_PLUS),
        (47.7, ADA, 64, (GENERATE,)),
        (47.7, ADA, 128, BOTH),
        (47.7, ADA, 128, BOTH_PLUS),
        (47.7, ADA, 62, BOTH),
        (47.7, ADA, 62, BOTH_PLUS),
        (47.7, AMPERE_PRO, 62, BOTH_PLUS),
        (80, AMPERE, 64, (GENERATE,)),
        (80, HOPPER, 64, BOTH),
        (80, HOPPER, 64, BOTH_PLUS),
        (96, BLACKWELL, 64, BOTH_PLUS),
        (141, HOPPER, 64, BOTH),
        (141, HOPPER, 64, BOTH_PLUS),
    )
)
CASES = tuple(
    found for case in UNCOMPILED for found in ([case, replace(case, compiled=True)] if len(case.models) > 1 else [case])
)
