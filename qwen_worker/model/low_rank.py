"""What LoRAs of the modulation add to the rows of its table, which stand for the layers' outputs.

An output is linear in the weights, row(t) = W x + b with x = SiLU(temb(t)): a LoRA adds scale * B (A x) to it, and the
weights need not be read again. Computed one timestep at a time, in the order and the dtype in which peft's layer would
beside the layer itself: bit-equal to that. Imports torch: import it inside functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """One layer's: `down` (rank, dim), `up` (6 dim, rank). `stream`: 0 for img_mod, 1 for txt_mod."""

    block: int
    stream: int
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def of(self, condition: torch.Tensor) -> torch.Tensor:
        """(1, dim) -> (1, 6 dim)"""
        linear = torch.nn.functional.linear
        return linear(linear(condition, self.down), self.up) * self.scale


@torch.no_grad()
def add(
    changes: Sequence[LowRank], rows: torch.Tensor, values: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """To the first n rows (.., blocks, 2, 6 dim), those of the timesteps `values` (n,). `embed`: (1,) -> (1, dim)."""
    conditions = [torch.nn.functional.silu(embed(value.view(1))) for value in values]
    for change in changes:
        rows[: len(values), change.block, change.stream] += torch.cat([change.of(one) for one in conditions])
