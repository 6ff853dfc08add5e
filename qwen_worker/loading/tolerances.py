"""How far a result of ours may be from the plain way's: the one home of these figures, for self-check and tests.

A distance is Euclidean, as a share of the plain result's length: a largest difference of single numbers varies with
the kind of processor. Two results that are as good as each other can be twice as far apart as each is from the exact
one. Imports torch: import it inside functions. Knows nothing of which results are compared.
"""

import torch

from ..memory.footprint import Plan
from ..model_settings import Precision

# A pass of the transformer, or of one of its blocks. In bfloat16 stock's own is 0.010 from the exact one.
PASS = {torch.float32: 2e-6, torch.bfloat16: 0.02}
# A modulation row. bfloat16 rounds a number by 0.002 of itself at the most; in the tiny checkpoint rows of neighbouring
# timesteps are 0.03 apart, at both ends of the table.
ROW = {torch.float32: 1e-5, torch.bfloat16: 0.005}
# What the VAE encodes or decodes with other convolutions.
PICTURE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# The product of random numbers and a quantized matrix, computed. fp8 rounds numbers of both by 0.027 of themselves on
# average; int8 by a 220th of a row's deviation, more where a row has outliers; NF4 rounds the matrix alone, by 0.09.
MATRIX = {Precision.FP8: 0.08, Precision.INT8: 0.08, Precision.NF4: 0.2}
COPY = 0.0  # tensors that were copied and not computed
ROUNDS_ACTIVATIONS = (Precision.FP8, Precision.INT8)


def distance(ours: torch.Tensor, plain: torch.Tensor) -> float:
    """The distance of two tensors of one shape. NaN where one of them holds NaN."""
    ours, plain = ours.float(), plain.float().to(ours.device)
    difference = (ours - plain).norm()
    # Equal tensors of zeros are not apart; what differs from nothing but zeros is infinitely far.
    return 0.0 if difference == 0 else (difference / plain.norm()).item()


def pass_tolerance(plan: Plan) -> float:
    """That of a pass by a plan's transformer.

    Where products round their rows too, a difference below bfloat16's precision may move a number to the next step of
    the quantization's grid, and comes out as large as that.
    """
    if plan.precision in ROUNDS_ACTIVATIONS:
        return MATRIX[plan.precision]
    return PASS[getattr(torch, plan.dtype)]
