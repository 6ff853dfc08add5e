"""The rank to which LoRAs are padded together for compiled blocks, and the room that they take then. Pure.

Knows nothing of how LoRAs are applied; that is in `padded.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from .architectures import BLOCK_LAYERS
from .file import LoraFile, streamed_block
from .names import Kind

RANK_MULTIPLE = 16  # which products on a card are fastest at, and which no compiled graph mistakes for 0 or 1
MATRICES = tuple(layer for layer in BLOCK_LAYERS if "_mod." not in layer)  # of a block, those that may be padded


def padded_rank(files: Iterable[LoraFile], has_table: bool) -> int:
    """The rank to which the matrices of these LoRAs are padded together.

    0 where this form does not hold them: they are LoKr or LoHa, they change what compiled blocks compute besides the
    matrices, as they do without a table, or they change no matrix of the blocks.
    """
    ranks = Counter[str]()
    for file in files:
        for name, layer in file.layers.items():
            if layer.kind is not Kind.LORA:
                return 0
            if streamed_block(name):
                ranks[name] += layer.rank
            elif name.startswith("transformer_blocks.") and not has_table:
                return 0
    return -(-max(ranks.values(), default=0) // RANK_MULTIPLE) * RANK_MULTIPLE


def padded_parameters(files: Sequence[LoraFile], rank: int) -> tuple[int, int]:
    """The parameters of these LoRAs on the device once they are padded: of all together, and at a time if streamed."""
    sides: dict[str, int] = {}  # inputs and outputs, by layer
    outside = 0
    for file in files:
        for name, layer in file.layers.items():
            if streamed_block(name):
                sides[name] = layer.inputs + layer.outputs
            else:
                outside += layer.parameters
    by_block = Counter[str]()
    for name, both in sides.items():
        by_block[streamed_block(name)] += rank * both
    return outside + by_block.total(), outside + max(by_block.values(), default=0)
