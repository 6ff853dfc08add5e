"""What the matrices of an adapter make of a layer's input, without the scale: LoRA, LoKr and LoHa.

A LoKr's matrix w1 (x) w2 of (ac, bd) is never made: its product with a row of bd numbers is w1 X w2^T of the row as a
grid X (b, d), for which w1 (a, b) and w2 (c, d) are enough. LoKr and LoHa stand around a layer of any precision, as
peft's LoRA layers do. peft's own layers for them make the whole matrix in every pass, and not for 4-bit layers.

Imports torch: import it inside functions. Knows nothing of files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from .names import LOHA_PARTS, Kind

Matrices = Mapping[str, torch.Tensor]  # by part
Product = Callable[[torch.Tensor], torch.Tensor]  # (.., in) -> (.., out)


def product_of(kind: Kind, matrices: Matrices) -> Product:
    """What multiplies with these matrices, wherever they lie at the time."""
    return partial(PRODUCTS[kind], matrices)


def lora_product(matrices: Matrices, inputs: torch.Tensor) -> torch.Tensor:
    return linear(linear(inputs, matrices["down"]), matrices["up"])


def lokr_product(matrices: Matrices, inputs: torch.Tensor) -> torch.Tensor:
    """By the factor first that leaves the smaller grid, which is never larger than the layer's input or output."""
    left, right = factors(matrices, "lokr_w1"), factors(matrices, "lokr_w2")
    (a, b), (c, d) = ((first[0].shape[0], first[-1].shape[1]) for first in (left, right))
    grid = inputs.unflatten(-1, (b, d))  # (.., b, d)
    if b * c <= a * d:
        grid = multiply_rows(left, multiply_columns(right, grid))
    else:
        grid = multiply_columns(right, multiply_rows(left, grid))
    return grid.flatten(-2)  # (.., a c)


def factors(matrices: Matrices, part: str) -> list[torch.Tensor]:
    """A LoKr's matrix as it is stored: whole, or as the two that make it."""
    return [matrices[part]] if part in matrices else [matrices[f"{part}_a"], matrices[f"{part}_b"]]


def multiply_columns(matrix: Sequence[torch.Tensor], grid: torch.Tensor) -> torch.Tensor:
    """Every row of the grid (.., n, d) times a matrix (c, d), of one factor or two: (.., n, c)"""
    for factor in reversed(matrix):
        grid = linear(grid, factor)
    return grid


def multiply_rows(matrix: Sequence[torch.Tensor], grid: torch.Tensor) -> torch.Tensor:
    """A matrix (a, b), of one factor or two, times every column of the grid: (.., b, n) -> (.., a, n)"""
    for factor in reversed(matrix):
        grid = factor @ grid
    return grid


def loha_product(matrices: Matrices, inputs: torch.Tensor) -> torch.Tensor:
    """By the whole matrix, which is made for this product alone."""
    w1_a, w1_b, w2_a, w2_b = (matrices[part] for part in LOHA_PARTS)
    return linear(inputs, (w1_a @ w1_b).mul_(w2_a @ w2_b))


PRODUCTS = {Kind.LORA: lora_product, Kind.LOKR: lokr_product, Kind.LOHA: loha_product}


class AddedProduct(torch.nn.Module):
    """One adapter's product of one layer, times its own scaling and the job's scale.

    The matrices are parameters by their parts, so that a compiler finds those of every block in the same place.
    """

    def __init__(self, kind: Kind, matrices: Mapping[str, torch.nn.Parameter], scaling: float):
        super().__init__()
        self.kind, self.parts, self.scaling, self.scale = kind, tuple(matrices), scaling, 1.0
        for part, matrix in matrices.items():
            self.register_parameter(part, matrix)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(.., in) -> (.., out)"""
        matrices = {part: getattr(self, part) for part in self.parts}
        return PRODUCTS[self.kind](matrices, inputs) * (self.scale * self.scaling)


class AdaptedLinear(torch.nn.Module):
    """A linear layer, or peft's layer around one, and beside it the products of LoKrs and LoHas, by the files' keys."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner, self.products = inner, torch.nn.ModuleDict()

    @property
    def base_layer(self) -> Any:
        """The transformer's own layer."""
        return getattr(self.inner, "base_layer", self.inner)

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """`scales`: of the job's LoRAs, by the files' keys."""
        for key, product in self.products.items():
            assert isinstance(product, AddedProduct)
            product.scale = scales[key]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(.., in) -> (.., out)"""
        outputs = self.inner(inputs)
        for product in self.products.values():
            outputs = outputs + product(inputs)
        return outputs
