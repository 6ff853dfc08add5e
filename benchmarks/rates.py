"""RunPod's cards: what each attains in the worker's arithmetic, and what its pool costs. Knows nothing of models.

The rates are lower than the data sheets'. A large matrix product attains about 80 % of a card's dense bfloat16 rate
where its power lets it (790 of 989 TFLOP/s were measured by others on an H200), 50 to 60 % on cards of 70 to 130 W, and
63 to 85 % of its 8-bit rate. The rates of attention are those that the authors of FlashAttention and cuDNN published
for a card of the generation, scaled to the others by their dense rates. None was measured with this worker.
"""

import re
from dataclasses import dataclass

BANDWIDTH_SHARE = 0.85  # of the data sheet's that kernels attain which only read and write
# Of FlashAttention 2's rate, which takes no mask, that torch's memory-efficient kernel attains: half of it in forward
# passes with heads of 128 channels (https://arxiv.org/abs/2307.08691, figure 4, where it is "xformers").
MASKED_SHARE = 0.5
PRICES_OF = "June 2026"
# Dollars an hour of one card by RunPod's serverless price list, which has no row for ADA_32_PRO.
PRICES = {
    "AMPERE_16": 0.58, "AMPERE_24": 0.68, "ADA_24": 1.12, "AMPERE_48": 1.22, "ADA_48_PRO": 1.91, "AMPERE_80": 2.74,
    "BLACKWELL_96": 4.00, "ADA_80_PRO": 4.18, "HOPPER_141": 5.58, "BLACKWELL_180": 8.64,
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """`memory` in GB (1e9 bytes); the rates of matrix products and of attention in TFLOP/s, as they are attained.

    `bandwidth`: GB/s of the card's memory by its data sheet; `pcie`: GB/s from pinned RAM to the card.
    """

    pool: str
    name: str  # a part of the name that RunPod and NVIDIA give it, of which the longest that is there counts
    memory: int
    bf16: float
    eight_bits: float
    attention: float
    bandwidth: float
    pcie: float = 25

    @property
    def cudnn(self) -> bool:
        """Whether cuDNN's attention is the card's fastest, which takes masks."""
        return self.name.startswith(("H100", "H200", "B200"))


CARDS = (
    Card("AMPERE_16", "RTX 2000 Ada", 16, 29, 55, 28, 224, pcie=12),
    Card("AMPERE_16", "RTX A4000", 16, 61, 104, 55, 448),
    Card("AMPERE_16", "RTX 4000 Ada", 20, 64, 128, 60, 360),
    Card("AMPERE_16", "RTX A4500", 20, 75, 128, 68, 640),
    Card("AMPERE_24", "L4", 24, 60, 115, 50, 300),
    Card("AMPERE_24", "RTX 3090", 24, 62, 180, 55, 936),
    Card("AMPERE_24", "RTX A5000", 24, 89, 150, 80, 768),
    Card("ADA_24", "RTX 4090", 24, 150, 281, 150, 1008),
    Card("ADA_32_PRO", "RTX 5090", 32, 180, 340, 170, 1792, pcie=50),
    Card("AMPERE_48", "A40", 48, 115, 200, 100, 696),
    Card("AMPERE_48", "RTX A6000", 48, 120, 210, 105, 768),
    Card("ADA_48_PRO", "L40", 48, 135, 240, 110, 864),
    Card("ADA_48_PRO", "RTX 6000 Ada", 48, 240, 440, 185, 960),
    Card("ADA_48_PRO", "L40S", 48, 260, 480, 200, 864),
    Card("AMPERE_80", "A100", 80, 250, 424, 220, 1935),
    Card("BLACKWELL_96", "RTX PRO 6000", 96, 380, 650, 260, 1597, pcie=50),
    Card("ADA_80_PRO", "H100 PCIe", 80, 530, 840, 400, 2000, pcie=50),
    Card("ADA_80_PRO", "H100 NVL", 94, 640, 1000, 480, 3900, pcie=50),
    Card("ADA_80_PRO", "H100", 80, 790, 1245, 600, 3350, pcie=50),
    Card("HOPPER_141", "H200", 141, 790, 1245, 600, 4800, pcie=50),
    Card("BLACKWELL_180", "B200", 180, 1600, 2800, 1100, 8000, pcie=50),
)


def card_of(device: str | None) -> Card | None:
    """The card of a device's name, such as "NVIDIA H100 80GB HBM3"; None where it is none of these."""
    named = [card for card in CARDS if device and re.search(rf"\b{re.escape(card.name)}\b", device)]
    return max(named, key=lambda card: len(card.name), default=None)
