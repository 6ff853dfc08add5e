"""What others have measured, beside what the account of a step gives for the same job: how far the method holds.

Each figure is of 50 steps with guidance at 1024x1024 in bfloat16 on one card, and of the passes alone where its source
tells them apart. Stock diffusers is traced as it was measured: operator by operator, with FlashAttention 2, which torch
chose there. Engines compute the same passes by kernels of their own; beside them stands the account of ours. Knows
nothing of how kernels are counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .measure.roofline import Work, seconds
from .rates import CARDS

STEPS, SIZE, PRECISION = 50, 1024, "bf16"
FLASH_2 = 370.0  # TFLOP/s of FlashAttention 2 on an H100 (https://arxiv.org/abs/2407.08608, figure 5, 128 channels)
HELD = 0.1  # of a figure, within which the account holds it
Accounts = Mapping[tuple[str, int, str, str], Sequence[Work]]


@dataclass(frozen=True)
class Published:
    """`contender`: whose account stands beside it. `seconds`: as published."""

    who: str
    card: str
    kind: str
    contender: str
    seconds: float
    source: str


FIGURES = (
    Published("stock diffusers", "H100", "generate", "stock", 18.49, "vipshop/cache-dit, docs/benchmark/NVIDIA_GPU.md"),
    Published(
        "stock diffusers", "H200", "generate", "stock", 20.0, "vllm-project/vllm-omni, diffusion_acceleration.md"
    ),
    Published("stock diffusers", "H200", "edit", "stock", 51.5, "vllm-project/vllm-omni, diffusion_acceleration.md"),
    Published("stock diffusers", "A100", "generate", "stock", 45.2, "vllm-omni, parallelism_acceleration.md"),
    Published("SGLang", "H100", "generate", "ours", 12.4, "sgl-project/sglang, perf_baselines/h100.json: 50 x 0.248"),
    Published("SGLang, compiled", "H200", "generate", "ours", 12.15, "sgl-project/sglang #22183: 50 x 0.243"),
    Published("SGLang", "H200", "generate", "ours", 12.05, "sgl-project/sglang #33536"),
    Published("SGLang", "H200", "edit", "ours", 32.1, "sgl-project/sglang #36680"),
    Published("SGLang, compiled", "H200", "edit 2511", "ours", 31.9, "sgl-project/sglang #20395"),
    Published("SGLang", "H200", "edit plus", "ours", 22.3, "sgl-project/sglang #36680"),
)


def held(accounts: Accounts) -> list[dict]:
    """A row for each published figure. `of published`: the computed seconds over it."""
    cards = {card.name: card for card in CARDS}
    rows: list[dict] = []
    for figure in FIGURES:
        if (figure.kind, SIZE, figure.contender, PRECISION) not in accounts:
            continue  # a record of some kinds alone
        works = accounts[figure.kind, SIZE, figure.contender, PRECISION]
        card = cards[figure.card]
        flash = min(FLASH_2, card.attention) if figure.contender == "stock" else None
        computed = STEPS * seconds(works, card, figure.contender, flash)
        share = computed / figure.seconds
        rows.append({
            "who": figure.who, "card": figure.card, "kind": figure.kind, "published s": figure.seconds,
            "computed s": round(computed, 1), "of published": round(share, 2),
            "held": "hit" if abs(share - 1) <= HELD else "miss", "source": figure.source,
        })  # fmt: skip
    return rows
