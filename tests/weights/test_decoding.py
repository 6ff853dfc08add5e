"""Encoded weights as numbers: GGUF's blocks as its description has them, and scales."""

import math
import struct

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from qwen_worker.checkpoints.encoded import EncodedWeight
from qwen_worker.checkpoints.files import StoredTensor
from qwen_worker.checkpoints.gguf_file import BLOCKS
from qwen_worker.errors import LoadError
from qwen_worker.weights import decoding


def random_blocks(encoding, rows, blocks):
    """Random bytes for blocks of a type, whose halves in float16 are numbers."""
    kind = GGMLQuantizationType[encoding]
    _, size = quants.GGML_QUANT_SIZES[kind]
    generator = numpy.random.default_rng(7)
    raw = generator.integers(0, 256, (rows * blocks, size), dtype=numpy.uint8)
    for start in range(0, size - 1):  # wherever the type has its halves: exponents below infinity
        raw[:, start + 1] &= 0xBB if start in halves_of(encoding, size) else 0xFF
    return raw.reshape(rows, blocks * size)


def halves_of(encoding, size):
    """Where a block has a number in float16."""
    last = {"Q6_K": [size - 2], "Q3_K": [size - 2], "Q2_K": [size - 4, size - 2]}
    return last.get(encoding, [0, 2] if encoding in ("Q4_K", "Q5_K", "Q4_1", "Q5_1") else [0])


@pytest.mark.parametrize("encoding", BLOCKS)
def test_blocks_are_what_ggml_s_own_package_makes_of_them(encoding):
    raw = random_blocks(encoding, rows=8, blocks=3)
    expected = quants.dequantize(raw, GGMLQuantizationType[encoding])
    assert numpy.isfinite(expected).all()
    assert torch.equal(decoding.unpack(torch.from_numpy(raw), encoding).reshape(8, -1), torch.from_numpy(expected))


def q4_k_by_its_description(block):
    """256 numbers of a block of 144 bytes, written from the description of `block_q4_K` in ggml-common.h.

    Two numbers in float16, d and dmin; 12 bytes of eight scales and eight minima in 6 bits; 128 bytes of 4-bit numbers.
    A group of 32 is d * scale * q - dmin * minimum. The first four scales and minima are the low 6 bits of bytes 0 to 3
    and 4 to 7; of the others the low 4 bits are the halves of bytes 8 to 11, and the high 2 bits the top bits of bytes
    0 to 3 and 4 to 7. Each 32 bytes hold the low halves of one group, and the high halves of the next.
    """
    d, least = struct.unpack("<ee", block[:4])
    packed, numbers = block[4:16], block[16:]
    scales, minima = [], []
    for group in range(8):
        if group < 4:
            scales.append(packed[group] & 63)
            minima.append(packed[group + 4] & 63)
        else:
            scales.append((packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4)
            minima.append((packed[group + 4] >> 4) | (packed[group] >> 6) << 4)
    found = []
    for group in range(8):
        start = group // 2 * 32
        for byte in numbers[start : start + 32]:
            value = byte >> 4 if group % 2 else byte & 15
            found.append(d * scales[group] * value - least * minima[group])
    return found


def test_q4_k_is_what_its_description_says():
    raw = random_blocks("Q4_K", rows=2, blocks=2)
    expected = [value for block in raw.reshape(-1, 144) for value in q4_k_by_its_description(bytes(block))]
    found = decoding.unpack(torch.from_numpy(raw), "Q4_K").tolist()
    assert len(found) == 4 * 256
    assert all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-4) for a, b in zip(found, expected, strict=True))


def encoded(tmp_path, shape, scale_shape=None, encoding="F8_E4M3"):
    tensors = [StoredTensor("a.weight", tmp_path / "a.safetensors", 0, 0, encoding, shape)]
    if scale_shape is not None:
        tensors.append(StoredTensor("a.scale_weight", tmp_path / "a.safetensors", 0, 0, "F32", scale_shape))
    return EncodedWeight("a.weight", shape, encoding, tuple(tensors))


@pytest.mark.parametrize("scale", [torch.tensor(3.0), torch.tensor([3.0]), torch.arange(1.0, 5), torch.ones(4, 1) / 7])
def test_a_scale_is_of_the_matrix_or_of_each_row(tmp_path, scale):
    values = torch.randn(4, 6).to(torch.float8_e4m3fn)
    weight = encoded(tmp_path, (4, 6), tuple(scale.shape))
    rows = scale.reshape(-1, 1).expand(4, 1) if scale.numel() > 1 else scale
    assert torch.equal(decoding.decode(weight, [values, scale]), values.float() * rows)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_scale_that_is_no_number_is_refused_by_the_weight_s_name(tmp_path, value):
    weight = encoded(tmp_path, (4, 6), (4,))
    with pytest.raises(LoadError, match="a.safetensors is corrupt: the scale of a.weight is negative or no number"):
        decoding.decode(weight, [torch.ones(4, 6).to(torch.float8_e4m3fn), torch.tensor([1.0, value, 1.0, 1.0])])


def test_the_first_rows_of_a_weight_are_those_of_its_scales_too(tmp_path):
    weight = encoded(tmp_path, (4, 6), (4, 1))
    values = StoredTensor("a.weight", tmp_path, 100, 24, "F8_E4M3", (4, 6))
    scales = StoredTensor("a.scale_weight", tmp_path, 8, 16, "F32", (4, 1))
    sized = EncodedWeight(weight.name, weight.shape, weight.encoding, (values, scales))
    first, scale = sized.first_rows(2).tensors
    assert (first.start, first.size, first.shape) == (100, 12, (2, 6))
    assert (scale.start, scale.size, scale.shape) == (8, 8, (2, 1))
