"""The names that trainers give a LoRA's tensors, as the transformer's layers. Pure.

Understood are the names of diffusers and peft (`lora_A`, `lora_B`, also `lora.down`), of Lightning (`lora_down`,
`lora_up`, `alpha`) and kohya's flat ones (`lora_unet_transformer_blocks_0_attn_to_q`), each under the prefixes of
diffusers, peft and ComfyUI. Any other name refuses the file: diffusers' own conversion drops such a tensor in silence,
and a caller takes the LoRA for one that does nothing. Knows nothing of files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_LAYERS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1",
    "txt_mod.1",
)  # fmt: skip
OTHER_LAYERS = (
    "img_in", "txt_in", "proj_out", "norm_out.linear", "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
)  # fmt: skip
PREFIX = re.compile(r"\A(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.)*")
FLAT_PREFIX = re.compile(r"lora_(unet|transformer)_")
FLAT_NAMES = {layer.replace(".", "_"): layer for layer in BLOCK_LAYERS}
FLAT_OTHERS = {layer.replace(".", "_"): layer for layer in OTHER_LAYERS}
# What follows a layer's name in a tensor's; peft writes the adapter's name before `weight`.
PARTS = (
    ("down", re.compile(r"\.(lora_down|lora_A|lora\.down)(\.[A-Za-z]\w*)?\.weight\Z")),
    ("up", re.compile(r"\.(lora_up|lora_B|lora\.up)(\.[A-Za-z]\w*)?\.weight\Z")),
    ("alpha", re.compile(r"\.alpha\Z")),
)
# Parts of names by which another kind of adapter is recognized.
OTHER_KINDS = {
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "lokr_": "a LoKr", "hada_": "a LoHa", "oft_": "an OFT",
    "lora_mid": "a LoCon with a middle matrix", ".bias": "a LoRA with biases", ".diff": "a LoRA with whole weights",
}  # fmt: skip
TEXT_ENCODER = re.compile(r"(lora_te|text_encoder)")


@dataclass(frozen=True)
class TensorNames:
    """The names of one layer's tensors in the file; `alpha` is empty where there is none."""

    down: str = ""
    up: str = ""
    alpha: str = ""


class UnusableLora(Exception):
    """A file holds something other than a LoRA that can be applied; the message is a predicate of the file."""


def group_by_layer(names: Iterable[str]) -> dict[str, TensorNames]:
    """The names of each layer's tensors, by the layer's name in the transformer.

    Raises `UnusableLora` where a name is not understood, or a layer lacks a matrix or has one twice.
    """
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        layer, part = split_name(name)
        if part in layers.setdefault(layer, {}):
            first = layers[layer][part]
            raise UnusableLora(f"has two tensors for {printable(layer)}: {printable(first)} and {printable(name)}")
        layers[layer][part] = name
    for layer, parts in layers.items():
        if missing := sorted({"down", "up"} - set(parts)):
            raise UnusableLora(f"lacks the {missing[0]} matrix of {printable(layer)}")
    if not layers:
        raise UnusableLora("holds no tensors")
    return {layer: TensorNames(**parts) for layer, parts in layers.items()}


def split_name(name: str) -> tuple[str, str]:
    """The layer of a tensor's name, and the tensor's part in the LoRA: down, up or alpha. Raises `UnusableLora`."""
    if TEXT_ENCODER.match(name):
        raise UnusableLora(f"has a part for the text encoder ({printable(name)}), which cannot be applied")
    for part, suffix in PARTS:
        if match := suffix.search(name):
            return layer_name(name[: match.start()]), part
    for sign, kind in OTHER_KINDS.items():
        if sign in name:
            raise UnusableLora(f"is {kind} ({printable(name)}), which cannot be applied")
    raise UnusableLora(f"holds {printable(name)}, which belongs to no LoRA")


def layer_name(name: str) -> str:
    """The transformer's own name of a layer, from a name with a prefix or a flat one."""
    if flat := FLAT_PREFIX.match(name):
        name = name[flat.end() :]
        block = re.fullmatch(r"transformer_blocks_([0-9]+)_(\w+)", name)
        if block and block[2] in FLAT_NAMES:
            return f"transformer_blocks.{block[1]}.{FLAT_NAMES[block[2]]}"
        return FLAT_OTHERS.get(name, name)
    return PREFIX.sub("", name, count=1)


def printable(name: str) -> str:
    """A name of somebody's as an error may show it."""
    return name[:100] if name.isprintable() else ascii(name[:100])
