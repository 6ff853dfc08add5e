"""Seconds of a step on a card, from its kernels: each takes as long as its arithmetic or its bytes, whichever is more.

Kernels follow each other. The host queues them meanwhile; where that takes longer, the card waits for the host. Knows
nothing of how kernels were counted, and imports no torch.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..rates import BANDWIDTH_SHARE, MASKED_SHARE, Card

PRODUCT, ATTENTION, ELEMENTWISE = "product", "attention", "elementwise"
# Seconds that the host takes for a kernel: in compiled blocks with Inductor's wrapper, 13 to 23 ms a pass on a slow
# core (torch's guards would take 7 ms more, `python -m benchmarks guards`); of an operator by itself with its way
# through diffusers' Python.
HOST_SECONDS = {"ours": 11e-6, "stock": 10e-6}


@dataclass(frozen=True)
class Work:
    """Kernels that are alike: `count` of them, with the `flops` and the `bytes` of one.

    `eight_bits`: of a product, whether its factors are; `masked`: of attention.
    """

    kind: str
    count: int
    flops: int
    bytes: int
    eight_bits: bool = False
    masked: bool = False

    def seconds(self, card: Card, flash: float | None = None) -> float:
        """Of all of them. `flash`: the rate of attention in TFLOP/s, where it is not the card's best."""
        memory = self.bytes / (card.bandwidth * 1e9 * BANDWIDTH_SHARE)
        rate = card.eight_bits if self.eight_bits else card.bf16
        if self.kind == ATTENTION:
            rate = flash or card.attention
            # cuDNN's kernel, the cards' best where they have it, takes a mask; FlashAttention 2 takes none.
            if self.masked and (flash or not card.cudnn):
                rate *= MASKED_SHARE
        return self.count * max(memory, self.flops / (rate * 1e12))


def grouped(works: Iterable[Work]) -> list[Work]:
    """The same, each sort once."""
    counts: Counter[tuple] = Counter()
    for work in works:
        counts[work.kind, work.flops, work.bytes, work.eight_bits, work.masked] += work.count
    return [Work(kind, count, flops, size, *rest) for (kind, flops, size, *rest), count in counts.items()]


def seconds(works: Iterable[Work], card: Card, contender: str = "ours", flash: float | None = None) -> float:
    """Of a step that starts these kernels."""
    works = list(works)
    host = HOST_SECONDS[contender] * sum(work.count for work in works)
    return max(host, sum(work.seconds(card, flash) for work in works))
