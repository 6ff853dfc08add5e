"""Encoded weights as the numbers that they stand for: scales multiplied, GGUF's blocks unpacked, on any device.

Blocks are unpacked by diffusers' functions, in float32: exact, and on the card where the bytes arrive there. A scale is
multiplied in float32 too, so that one rounding to the plan's dtype is left. Imports torch, and diffusers inside
functions: import it inside functions. Knows nothing of plans and models.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import cast

import torch

from ..checkpoints.encoded import EncodedWeight
from ..errors import LoadError
from .reader import PlainReader, WeightReader

MAX_NUMBERS = 1 << 23  # that are unpacked at once: diffusers' functions take several copies of them
Unpack = Callable[[torch.Tensor, int, int, torch.dtype], torch.Tensor]  # blocks, their numbers and bytes, dtype


def read(reader: WeightReader | PlainReader, weight: EncodedWeight) -> torch.Tensor:
    """The weight's numbers, once its bytes are there. Raises what `decode` and reading raise."""
    return decode(weight, pop(reader, weight))


def pop(reader: WeightReader | PlainReader, weight: EncodedWeight) -> list[torch.Tensor]:
    """The weight's bytes as they are stored, and its scale if it has one. Raises what reading raises."""
    return [reader.pop(tensor.name) for tensor in weight.tensors]


def decode(weight: EncodedWeight, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The numbers, of the weight's shape: in float32 where they were encoded, else in the stored dtype.

    `parts`: as `pop` gives them. Raises `LoadError` for a scale that is negative or no number.
    """
    stored = parts[0]
    if weight.is_blocks:
        return unpack(stored, weight.encoding).reshape(weight.shape)
    scales = scales_of(weight, parts)
    return stored if scales is None else stored.float() * scales.reshape(-1, *[1] * (stored.dim() - 1))


def scales_of(weight: EncodedWeight, parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The scale of each row in float32, (rows, 1); None without one.

    Raises `LoadError` for one that is negative or NaN.
    """
    if not weight.has_scale:
        return None
    scale = parts[1].float().reshape(-1)
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        file = weight.tensors[0].file.name
        raise LoadError(f"{file} is corrupt: the scale of {weight.name} is negative or no number")
    return scale.expand(weight.shape[0]).reshape(-1, 1)


def unpack(stored: torch.Tensor, encoding: str) -> torch.Tensor:
    """The numbers of GGUF's blocks in float32, flat. `stored`: their bytes, (..., bytes of a row)."""
    gguf = importlib.import_module("gguf")
    gguf_utils = importlib.import_module("diffusers.quantizers.gguf.utils")
    kind = gguf.GGMLQuantizationType[encoding]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    unpack_blocks = cast(Unpack, gguf_utils.dequantize_functions[kind])
    blocks = stored.reshape(-1, size)
    unpacked = torch.empty((len(blocks), numbers), device=stored.device)
    step = max(1, MAX_NUMBERS // numbers)
    for start in range(0, len(blocks), step):
        unpacked[start : start + step] = unpack_blocks(blocks[start : start + step], numbers, size, torch.float32)
    return unpacked.reshape(-1)
