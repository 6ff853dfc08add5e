"""The transformers that adapters are made for, told apart by the names and the width of their layers. Pure.

`layer` here is a layer's name in the transformer, and a block's layers are written without the block's number. Knows
nothing of files, nor of how an adapter is applied.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = re.compile(r"transformer_blocks\.[0-9]+\.")


@dataclass(frozen=True)
class Architecture:
    """`classes`: diffusers' pipelines with such a transformer; `width`: of its hidden states, as it was released.

    `block_layers`, `other_layers`: the linear layers of a block, and those outside of blocks.
    """

    name: str
    classes: tuple[str, ...]
    width: int
    block_layers: tuple[str, ...]
    other_layers: tuple[str, ...]


ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TIMESTEP = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2")
IMAGE_20B, IMAGE_2_1 = ARCHITECTURES = (
    Architecture(
        "the 20B Qwen-Image models",
        ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline"),
        3072,
        (
            *ATTENTION, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
            "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1", "txt_mod.1",
        ),
        ("img_in", "txt_in", "proj_out", "norm_out.linear", *TIMESTEP),
    ),
    Architecture(
        "Qwen-Image-2.1",
        ("QwenImage21Pipeline",),
        4096,
        (*ATTENTION, "img_mlp.proj", "img_mlp.gate_layer", "img_mlp.out"),
        ("img_in", "txt_in.in_layer", "txt_in.out_layer", "modulation.1", "proj_out", "norm_out.linear", *TIMESTEP),
    ),
)  # fmt: skip
BLOCK_LAYERS, OTHER_LAYERS = IMAGE_20B.block_layers, IMAGE_20B.other_layers


def architecture_of(class_name: str) -> Architecture | None:
    """That of the transformers of a pipeline class; None for a class that is not known here."""
    return next((one for one in ARCHITECTURES if class_name in one.classes), None)


def has_layer(architecture: Architecture, layer: str) -> bool:
    """Whether a transformer of this architecture may have the layer; the number of its blocks is not looked at."""
    block = BLOCK.match(layer)
    return layer[block.end() :] in architecture.block_layers if block else layer in architecture.other_layers


def guess_architecture(layers: Iterable[tuple[str, int]]) -> Architecture | None:
    """The one architecture that has all of these layers, given as (name, inputs); None where that is not clear.

    Both have blocks with the same four layers of attention: of these alone the released models' width decides.
    """
    layers = list(layers)
    able = [one for one in ARCHITECTURES if all(has_layer(one, name) for name, _ in layers)]
    if len(able) > 1:
        widths = {inputs for name, inputs in layers if BLOCK.match(name)}
        able = [one for one in able if widths == {one.width}]
    return able[0] if len(able) == 1 else None
