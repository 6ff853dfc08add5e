"""LoRAs in the form that compiled blocks take: every matrix of every block with one low-rank path of the same rank.

Whoever compiles a block compiles its modules. So that all LoRAs have one graph in common, whatever their layers,
numbers and ranks, all of a job's LoRAs on a layer are one here, filled up with zeros to the rank of the job, and layers
without a LoRA have zeros alone. Zeros add nothing to a sum. Scales are multiplied into a matrix, which rounds once
more: equal to peft's layers up to rounding.

Imports torch: import it inside functions. Knows nothing of when blocks are compiled, nor of where weights come from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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

    `idle`: the two matrices of a layer that no LoRA changes; they stand in all layers until `load`. The matrices are no
    parameters: a graph takes the sizes of those as constants, and would be compiled for each rank.
    """

    def __init__(self, base_layer: Any, parts: Sequence[LowRankPart], idle: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        self.base_layer, self.parts, self.idle = base_layer, parts, idle
        self.down, self.up = idle

    def load(self) -> None:
        """Bring the LoRAs' matrices to the device, one after the other in the rows of one; waits for nothing."""
        if not self.parts:
            return
        down, up = self.idle
        if len(self.parts) == 1 and len(self.parts[0].down) == len(down):  # it fills the layer's rank alone
            (part,) = self.parts
            down = part.down.data.to(down.device, non_blocking=True) * part.scale
            self.down, self.up = free_rank(down, part.up.data.to(up.device, non_blocking=True))
            return
        down, up = torch.zeros_like(down), torch.zeros_like(up)
        first = 0
        for part in self.parts:
            rows = slice(first, first + len(part.down))
            down[rows] = part.down.to(down.device, non_blocking=True) * part.scale
            up[:, rows] = part.up.to(up.device, non_blocking=True)
            first = rows.stop
        self.down, self.up = free_rank(down, up)

    def unload(self) -> None:
        self.down, self.up = self.idle

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(.., in) -> (.., out)"""
        linear = torch.nn.functional.linear
        return self.base_layer(inputs) + linear(linear(inputs, self.down), self.up)


def free_rank(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same two matrices, of which a graph that is traced with them serves every rank."""
    torch._dynamo.maybe_mark_dynamic(down, 0)
    torch._dynamo.maybe_mark_dynamic(up, 1)
    return down, up


def load_layers(layers: Iterable[PaddedLinear]) -> None:
    for layer in layers:
        layer.load()


def unload_layers(layers: Iterable[PaddedLinear]) -> None:
    for layer in layers:
        layer.unload()


def padded_layers(
    transformer: Any,
    parts: Mapping[str, Sequence[LowRankPart]],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    fill: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.zero_,
) -> dict[str, PaddedLinear]:
    """A layer for each matrix of the transformer's blocks, by name; `parts`: the LoRAs of those that have any.

    `fill`: what gives the matrices of the others their numbers.
    """
    idle: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of each matrix of a block, in common to all blocks
    layers: dict[str, PaddedLinear] = {}
    for number in range(len(transformer.transformer_blocks)):
        for matrix in MATRICES:
            name = f"transformer_blocks.{number}.{matrix}"
            base = transformer.get_submodule(name)
            if matrix not in idle:
                shapes = (rank, base.in_features), (base.out_features, rank)
                idle[matrix] = free_rank(*(fill(torch.empty(shape, dtype=dtype, device=device)) for shape in shapes))
            layers[name] = PaddedLinear(base, parts.get(name, ()), idle[matrix])
    return layers
