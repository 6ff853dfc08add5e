"""The names that trainers give an adapter's tensors, as the transformer's layers. Pure.

Understood are the names of diffusers and peft (`lora_A`, `lora_B`, also `lora.down`), of Lightning (`lora_down`,
`lora_up`, `alpha`), those of LyCORIS for LoKr and LoHa (`lokr_w1`, `hada_w1_a`), and the flat ones of kohya and LyCORIS
(`lora_unet_transformer_blocks_0_attn_to_q`), each under the prefixes of diffusers, peft, ComfyUI and compiled modules,
for the layers of the 20B transformer and of Qwen-Image-2.1's (`architectures.py`).
Any other name refuses the file: diffusers' own conversion drops such a tensor in silence, and a caller takes the LoRA
for one that does nothing. Knows nothing of files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .architectures import ARCHITECTURES

PREFIX = re.compile(
    r"\A(base_model\.model\.|model\.|diffusion_model\.|transformer\.|unet\.|pipe\.dit\.|dit\.|module\.)*"
)
FLAT_PREFIX = re.compile(r"(lora_unet|lora_transformer|lycoris)_")
FLAT_NAMES = {layer.replace(".", "_"): layer for one in ARCHITECTURES for layer in one.block_layers}
FLAT_OTHERS = {layer.replace(".", "_"): layer for one in ARCHITECTURES for layer in one.other_layers}
# What torch puts before the names of a module that it compiles, shards or computes again, also of one within another.
WRAPPERS = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
WRAPPED, FLAT_WRAPPED = re.compile(rf"(?<![^.]){WRAPPERS}\."), re.compile(rf"(\A|_){WRAPPERS}_")
# What follows a layer's name in a tensor's; peft writes the adapter's name before `weight`.
PARTS = (
    ("down", re.compile(r"\.(lora_down|lora_A|lora\.down)(\.[^.]+)?\.weight\Z")),
    ("up", re.compile(r"\.(lora_up|lora_B|lora\.up)(\.[^.]+)?\.weight\Z")),
    ("alpha", re.compile(r"\.alpha\Z")),
    ("", re.compile(r"\.(lokr_w[12](?:_[ab])?|hada_w[12]_[ab])(\.[^.]+)?\Z")),  # LyCORIS' own names of the parts
)
# Parts of names by which another kind of adapter is recognized.
OTHER_KINDS = {
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "lokr_t": "a LoKr with a middle matrix",
    "hada_t": "a LoHa with a middle matrix", "oft_": "an OFT", "lora_mid": "a LoCon with a middle matrix",
    ".bias": "a LoRA with biases", ".diff": "a LoRA with whole weights",
}  # fmt: skip
TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_te|text_encoder)")


class Kind(StrEnum):
    """What an adapter makes of a layer's matrices."""

    LORA = "LoRA"
    LOKR = "LoKr"
    LOHA = "LoHa"


LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
# The matrices of a layer, by kind: each of LoKr's two is there whole or as a product.
MATRICES = {
    ("down", "up"): Kind.LORA,
    ("lokr_w1", "lokr_w2"): Kind.LOKR,
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b"): Kind.LOKR,
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2"): Kind.LOKR,
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"): Kind.LOKR,
    LOHA_PARTS: Kind.LOHA,
}


@dataclass(frozen=True)
class TensorNames:
    """The names of one layer's tensors in the file: of its matrices, by part, and of its alpha if it has one."""

    kind: Kind
    matrices: Mapping[str, str]
    alpha: str = ""


class UnusableLora(Exception):
    """A file holds something other than a LoRA that can be applied; the message is a predicate of the file."""


def group_by_layer(names: Iterable[str]) -> tuple[dict[str, TensorNames], list[str]]:
    """The names of each layer's tensors, by the layer's name in the transformer, and those of the text encoder's part.

    Raises `UnusableLora` where a name is not understood, a layer lacks a matrix or has one twice, or nothing is of the
    transformer.
    """
    layers: dict[str, dict[str, str]] = {}
    text_encoder: list[str] = []
    for name in names:
        if TEXT_ENCODER.match(name):
            text_encoder.append(name)
            continue
        layer, part = split_name(name)
        if part in layers.setdefault(layer, {}):
            first = layers[layer][part]
            raise UnusableLora(f"has two tensors for {printable(layer)}: {printable(first)} and {printable(name)}")
        layers[layer][part] = name
    if text_encoder and not layers:
        raise UnusableLora(f"has a part for the text encoder only ({printable(text_encoder[0])}), and none is applied")
    if not layers:
        raise UnusableLora("holds no tensors")
    return {layer: layer_tensors(layer, parts) for layer, parts in layers.items()}, text_encoder


def split_name(name: str) -> tuple[str, str]:
    """The layer of a tensor's name, and the tensor's part in the adapter. Raises `UnusableLora`."""
    for part, suffix in PARTS:
        if match := suffix.search(name):
            return layer_name(name[: match.start()]), part or match[1]
    for sign, kind in OTHER_KINDS.items():
        if sign in name:
            raise UnusableLora(f"is {kind} ({printable(name)}), which cannot be applied")
    raise UnusableLora(f"holds {printable(name)}, which belongs to no LoRA")


def layer_tensors(layer: str, parts: dict[str, str]) -> TensorNames:
    """The tensors of a layer, by their parts. Raises `UnusableLora` where they are not those of one kind."""
    present = parts.keys() - {"alpha"}
    wanted = [matrices for matrices in MATRICES if present <= set(matrices)]
    if not wanted:
        raise UnusableLora(f"has {' and '.join(sorted(present))} for {printable(layer)}, which no adapter has together")
    matrices = min(wanted, key=len)
    if missing := sorted(set(matrices) - present):
        raise UnusableLora(f"lacks the {missing[0]} matrix of {printable(layer)}")
    return TensorNames(MATRICES[matrices], {part: parts[part] for part in matrices}, parts.get("alpha", ""))


def layer_name(name: str) -> str:
    """The transformer's own name of a layer, from a name with prefixes or a flat one."""
    if flat := FLAT_PREFIX.match(name):
        name = FLAT_WRAPPED.sub(r"\1", name[flat.end() :])
        block = re.fullmatch(r"transformer_blocks_([0-9]+)_(\w+)", name)
        if block and block[2] in FLAT_NAMES:
            return f"transformer_blocks.{block[1]}.{FLAT_NAMES[block[2]]}"
        return FLAT_OTHERS.get(name, name)
    return PREFIX.sub("", WRAPPED.sub("", name), count=1)


def printable(name: str) -> str:
    """A name of somebody's as an error may show it."""
    return name[:100] if name.isprintable() else ascii(name[:100])
