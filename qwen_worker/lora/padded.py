"""LoRAs in the form that compiled blocks take: every matrix of every block with one low-rank path of the same rank.

Whoever compiles a block compiles its shapes and its modules. So that LoRAs of other ranks, layers and numbers have one
graph in common, all of a job's LoRAs on a layer are one here, filled up with zeros to one of a few ranks, and layers
without a LoRA have zeros alone. Zeros add nothing to a sum. Scales are multiplied into a matrix, which rounds once
more: equal to peft's layers up to rounding.

Imports torch: import it inside functions. Knows nothing of compiling, nor of where weights come from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .ranks import MATRICES


@dataclass(frozen=True)
class LowRankPart:
    """One LoRA's share of a layer: `down` (rank, in) and `up` (out, rank), wherever they lie at the time."""

    down: torch.nn.Parameter
    up: torch.nn.Parameter
    scale: float


class PaddedLinear(torch.nn.Module):
    """A linear layer of any precision, and beside it a low-rank path: `down` (rank, in), `up` (out, rank).

    `zeros`: the two matrices of a layer that no LoRA changes; they stand in all layers until `load`.
    """

    def __init__(self, base_layer: Any, parts: Sequence[LowRankPart], zeros: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        self.base_layer, self.parts, self.zeros = base_layer, parts, zeros
        self.down, self.up = (torch.nn.Parameter(matrix, requires_grad=False) for matrix in zeros)

    def load(self) -> None:
        """Bring the LoRAs' matrices to the device, one after the other in the rows of one; waits for nothing."""
        if not self.parts:
            return
        down, up = (torch.zeros_like(matrix) for matrix in self.zeros)
        first = 0
        for part in self.parts:
            rows = slice(first, first + len(part.down))
            down[rows] = part.down.to(down.device, non_blocking=True) * part.scale
            up[:, rows] = part.up.to(up.device, non_blocking=True)
            first = rows.stop
        self.down.data, self.up.data = down, up

    def unload(self) -> None:
        self.down.data, self.up.data = self.zeros

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(.., in) -> (.., out)"""
        linear = torch.nn.functional.linear
        return self.base_layer(inputs) + linear(linear(inputs, self.down), self.up)


def load_layers(layers: Iterable[PaddedLinear]) -> None:
    for layer in layers:
        layer.load()


def unload_layers(layers: Iterable[PaddedLinear]) -> None:
    for layer in layers:
        layer.unload()


def padded_layers(
    transformer: Any, parts: Mapping[str, Sequence[LowRankPart]], rank: int, dtype: torch.dtype, device: torch.device
) -> dict[str, PaddedLinear]:
    """A layer for each matrix of the transformer's blocks, by name; `parts`: the LoRAs of those that have any."""
    zeros: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of each matrix of a block, in common to all blocks
    layers: dict[str, PaddedLinear] = {}
    for number in range(len(transformer.transformer_blocks)):
        for matrix in MATRICES:
            name = f"transformer_blocks.{number}.{matrix}"
            base = transformer.get_submodule(name)
            if matrix not in zeros:
                shapes = (rank, base.in_features), (base.out_features, rank)
                down, up = (torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
                zeros[matrix] = down, up
            layers[name] = PaddedLinear(base, parts.get(name, ()), zeros[matrix])
    return layers
