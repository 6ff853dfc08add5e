"""The rotary embedding in real numbers: compilers have no complex ones, and stock's break its kernels in three.

Stock multiplies pairs of a head's channels, taken as complex numbers x = a + ib, by e^(i phi). The same without them,
from tables of cos phi and sin phi in float32:  (a, b) -> (a cos phi - b sin phi, b cos phi + a sin phi).
The same products and sums in the same precision: bit-equal where no compiler contracts them to fused multiply-adds,
which round once less (one unit in the last place of float32, before the rounding to bfloat16).

By itself it is slower, four kernels for three: it pays in compiled blocks, where all of it is one. Does not cover
Qwen-Image-2.1, which has its own. Imports torch: import it inside functions.
"""

from typing import Any

import torch

Table = tuple[torch.Tensor, torch.Tensor]  # cos and sin, (tokens, 1, channels / 2)


class RealRotary(torch.nn.Module):
    """Stands where the transformer's `pos_embed` stood; gives its tables of the picture and of the text, as real."""

    def __init__(self, stock: torch.nn.Module):
        super().__init__()
        self.stock = stock

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Table, Table]:
        picture, text = self.stock(*args, **kwargs)
        return table(picture), table(text)


def table(frequencies: torch.Tensor) -> Table:
    """(tokens, channels / 2), complex -> cos and sin, with a dimension for the heads."""
    return frequencies.real.unsqueeze(1).contiguous(), frequencies.imag.unsqueeze(1).contiguous()


def rotate(x: torch.Tensor, angles: Table) -> torch.Tensor:
    """(B, tokens, heads, channels)."""
    cos, sin = angles
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).type_as(x)
