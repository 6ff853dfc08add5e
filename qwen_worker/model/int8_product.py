"""torchao's INT8 product with few rows, as the text stream of a short prompt has: CUDA's asks for more than 16.

torchao's own way out (a product in float32) is for calls that are not compiled; compiled ones fail when they run.
Imports torch: import it inside functions. Knows nothing of models.
"""

import functools
from collections.abc import Callable

import torch

LEAST_ROWS = 17  # of torch._int_mm on CUDA


def pad_few_rows() -> None:
    """From now on torchao's products have enough rows, wherever it is called from; doing it twice is doing it once."""
    from torchao.kernel import intmm

    if not hasattr(intmm.safe_int_mm, "__wrapped__"):
        intmm.safe_int_mm = padded(intmm.safe_int_mm)


def padded(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable:
    """product(rows, matrix), (M, K) and (K, N) to (M, N), that is never given fewer than `LEAST_ROWS`."""

    @functools.wraps(product)
    def call(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        count = rows.shape[0]
        if count >= LEAST_ROWS:  # compiled, a question of which graph
            return product(rows, matrix)
        return product(torch.nn.functional.pad(rows, (0, 0, 0, LEAST_ROWS - count)), matrix)[:count]

    return call
