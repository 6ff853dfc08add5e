"""The floor under a drawing: the FLOPs of the transformer's passes over the rate of the device's matrix products.

A multiply and an add are two FLOPs. A linear layer takes 2 x tokens x its weights (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1 and table 1); attention 2 n^2 d for the scores, as there, and as much
again for the sum that they weigh, where n counts all tokens that see each other and d is the width. Qwen-Image's blocks
have two streams of the same shapes, latents and text, each with its own weights, and one attention over both. Norms,
rotary embedding and activations are left out: they are bound by memory, not by arithmetic. Imports torch inside
functions; knows nothing of pipelines.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

SINUSOIDS = 256  # channels of the timestep's embedding before its first layer, fixed in the architecture
RATE_SIDE = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices whose product is timed
RATE_REPEATS = 20  # timed products
RATE_SETS = 3  # pairs of matrices that are multiplied in turns, so that no cache holds them


def forward_flops(config: Mapping, batch: int, latents: int, text: int) -> int:
    """FLOPs of one pass over `batch` pictures.

    `config`: the transformer's; `latents`: tokens of a picture with its input pictures; `text`: tokens of the prompt.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    out = config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"])
    block = 12 * width * width  # query, key, value, output: 4; the MLP to four times the width and back: 8
    weights_a_latent = config["in_channels"] * width + config["num_layers"] * block + width * out
    weights_a_text_token = config["joint_attention_dim"] * width + config["num_layers"] * block
    # The timestep goes once a picture through its embedding, two modulations of six rows a block, the last norm's rows.
    timestep = SINUSOIDS * width + width * width
    modulation = config["num_layers"] * 2 * 6 * width * width + 2 * width * width
    linear = 2 * (latents * weights_a_latent + text * weights_a_text_token + timestep + modulation)
    attention = config["num_layers"] * 4 * (latents + text) ** 2 * width
    return batch * (linear + attention)


def passes_flops(config: Mapping, forwards: Iterable[tuple[int, int, int]]) -> int:
    """FLOPs of several passes, each given as its batch, latent tokens and text tokens."""
    return sum(forward_flops(config, batch, latents, text) for batch, latents, text in forwards)


def matmul_rate(device: str, dtype: str) -> float:
    """FLOPs a second of a large product of random matrices on `device` in torch's `dtype`: the median of several."""
    import torch

    side = RATE_SIDE[device]
    sets = [
        [torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2)] for _ in range(RATE_SETS)
    ]
    seconds = []
    for number in range(RATE_REPEATS + RATE_SETS):
        left, right = sets[number % RATE_SETS]
        seconds.append(timed_product(left, right, device))
    return 2 * side**3 / statistics.median(seconds[RATE_SETS:])


def timed_product(left: Any, right: Any, device: str) -> float:
    """The seconds of one matrix product."""
    if device != "cuda":
        started = time.perf_counter()
        left @ right
        return time.perf_counter() - started
    import torch

    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    left @ right
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000
