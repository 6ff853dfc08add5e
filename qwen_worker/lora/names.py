"""The names that trainers give a LoRA's tensors, as the transformer's layers. Pure.

Understood: diffusers and peft (`lora_A`, `lora_B`, also `lora.down`), Lightning (`lora_down`, `lora_up`, `alpha`) and
kohya's flat names (`lora_unet_transformer_blocks_0_attn_to_q`), each under the prefixes of diffusers, peft and ComfyUI.
diffusers' own conversion drops in silence what it does not know, which a caller takes for a LoRA that does nothing.
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
PREFIX = re.compile(r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.)*")
FLAT_PREFIX = re.compile(r"lora_(unet|transformer)_")
FLAT_NAMES = {layer.replace(".", "_"): layer for layer in BLOCK_LAYERS}
FLAT_OTHERS = {layer.replace(".", "_"): layer for layer in OTHER_LAYERS}
# What is behind a layer's name; peft writes the adapter's name in between.
PARTS = (
    ("down", re.compile(r"\.(lora_down|lora_A|lora\.down)(\.[A-Za-z]\w*)?\.weight\Z")),
    ("up", re.compile(r"\.(lora_up|lora_B|lora\.up)(\.[A-Za-z]\w*)?\.weight\Z")),
    ("alpha", re.compile(r"\.alpha\Z")),
)
# What tells another kind of adapter.
OTHER_KINDS = {
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "lokr_": "a LoKr", "hada_": "a LoHa", "oft_": "an OFT",
    "lora_mid": "a LoCon with a middle matrix", ".bias": "a LoRA with biases", ".diff": "a LoRA with whole weights",
}  # fmt: skip
TEXT_ENCODER = re.compile(r"(lora_te|text_encoder)")


@dataclass(frozen=True)
class Names:
    """The names of one layer's tensors in the file; `alpha` may be missing."""

    down: str = ""
    up: str = ""
    alpha: str = ""


class NotALora(Exception):
    """What a file holds in place of a LoRA that can be applied."""


def layers(names: Iterable[str]) -> dict[str, Names]:
    """By layer of the transformer, the names of its tensors. Raises `NotALora` where one has another meaning."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        layer, part = split(name)
        if part in found.setdefault(layer, {}):
            raise NotALora(f"has two tensors for {shown(layer)}: {shown(found[layer][part])} and {shown(name)}")
        found[layer][part] = name
    for layer, parts in found.items():
        if missing := sorted({"down", "up"} - set(parts)):
            raise NotALora(f"lacks the {missing[0]} matrix of {shown(layer)}")
    if not found:
        raise NotALora("holds no tensors")
    return {layer: Names(**parts) for layer, parts in found.items()}


def split(name: str) -> tuple[str, str]:
    """A tensor's layer, and which part of the layer's LoRA it is."""
    if TEXT_ENCODER.match(name):
        raise NotALora(f"has a part for the text encoder ({shown(name)}), which cannot be applied")
    for part, suffix in PARTS:
        if match := suffix.search(name):
            return layer_of(name[: match.start()]), part
    for sign, kind in OTHER_KINDS.items():
        if sign in name:
            raise NotALora(f"is {kind} ({shown(name)}), which cannot be applied")
    raise NotALora(f"holds {shown(name)}, which belongs to no LoRA")


def layer_of(name: str) -> str:
    """The layer's own name, of a prefixed or a flat one."""
    if flat := FLAT_PREFIX.match(name):
        name = name[flat.end() :]
        block = re.fullmatch(r"transformer_blocks_([0-9]+)_(\w+)", name)
        if block and block[2] in FLAT_NAMES:
            return f"transformer_blocks.{block[1]}.{FLAT_NAMES[block[2]]}"
        return FLAT_OTHERS.get(name, name)
    return name[PREFIX.match(name).end() :]


def shown(name: str) -> str:
    return name[:100] if name.isprintable() else ascii(name[:100])
