"""Query, key and value of each stream in one product: W_qkv = [W_q; W_k; W_v], and its result split in three.

Fewer and larger products: at 1024 x 1024 the text's few rows read three matrices in one launch. The three layers stay
in the tree and their weights become parts of the one, so that nothing is held twice and LoRAs, which stand around the
layers, find them: `attention.py` takes the one product where all three are plain, and the three otherwise.

Compilers do not do it by themselves: torch's only fuses such products where weights are constants to it. Rows of a
product do not depend on each other: equal up to the order of sums that a library chooses by the matrix's shape.

Does not cover quantized layers, whose weights are no plain tensors, nor transformers that take turns on the card: they
move each weight by itself, and the parts would part. Not by default before it is measured: parts of three sizes leave
holes in the allocator's blocks while weights are moved. Imports torch: import it inside functions.
"""

from typing import Any

import torch

WEIGHT, BIAS = "fused_{}_weight", "fused_{}_bias"
STREAMS = {"picture": ("to_q", "to_k", "to_v"), "text": ("add_q_proj", "add_k_proj", "add_v_proj")}


@torch.no_grad()
def fuse(transformer: Any) -> None:
    """Lay the weights of each stream's three layers side by side. One stream of a block is there twice at a time."""
    for block in transformer.transformer_blocks:
        for stream, names in STREAMS.items():
            layers = [getattr(block.attn, name) for name in names]
            for kind, attribute in ((WEIGHT, "weight"), (BIAS, "bias")):
                parts = [getattr(layer, attribute).data for layer in layers]
                # Buffers that no file holds: `.to()` and compilers know them as they know weights.
                block.attn.register_buffer(kind.format(stream), torch.cat(parts), persistent=False)
                views = getattr(block.attn, kind.format(stream)).split([len(part) for part in parts])
                for layer, view in zip(layers, views, strict=True):
                    getattr(layer, attribute).data = view


def projected(attn: Any, stream: str, x: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """Query, key and value of x (B, tokens, dim); None where a layer is not plain, or nothing is fused."""
    weight = getattr(attn, WEIGHT.format(stream), None)
    if weight is None or any(type(getattr(attn, name)) is not torch.nn.Linear for name in STREAMS[stream]):
        return None
    return torch.nn.functional.linear(x, weight, getattr(attn, BIAS.format(stream))).chunk(3, dim=-1)
