"""The weights that a Qwen-Image transformer has, by its config: names and shapes, without torch.

A file that stands for a transformer is held to them before it is downloaded; tests hold them to the classes of the
installed diffusers. Knows nothing of files.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..errors import LoadError
from .files import Json

Shapes = dict[str, tuple[int, ...]]
TIME_CHANNELS = 256  # of the sinusoids of a timestep
# Of `QwenImageTransformer2DModel` and `QwenImage21Transformer2DModel` of diffusers: their arguments' defaults.
CLASS_2_1 = "QwenImage21Transformer2DModel"
DEFAULTS = {
    "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 3584,
}  # fmt: skip
DEFAULTS_2_1 = {
    "patch_size": 1, "in_channels": 64, "out_channels": 64, "num_layers": 32, "attention_head_dim": 128,
    "num_attention_heads": 32, "context_in_dim": 4096, "mlp_ratio": 3,
}  # fmt: skip
MAX_SIZE, MAX_LAYERS = 1_000_000, 1000  # of any number in a config: larger ones are damage
# What a class computes by itself, and other tools have stored.
COMPUTED = re.compile(r"(^|\.)(pos_embed\.|(pos|neg)_freqs$)")


def require_weights(found: Mapping[str, tuple[int, ...]], config: Json, label: str) -> None:
    """Refuse weights that are not those of the architecture of `config`, naming one.

    `found`: shapes by name. `label`: the file's name. Raises `LoadError`.
    """
    expected = weight_shapes(config)
    unknown = sorted(name for name in found if name not in expected and not COMPUTED.search(name))
    if unknown:
        raise LoadError(
            f"{label} holds {count_of(unknown)}, which the transformer of the base checkpoint has no place for"
        )
    if missing := sorted(name for name in expected if name not in found):
        raise LoadError(f"{label} lacks {count_of(missing)}, which the transformer of the base checkpoint has")
    for name, shape in expected.items():
        if found[name] != shape:
            have, need = ("x".join(map(str, sizes)) for sizes in (found[name], shape))
            raise LoadError(
                f"{label} has {name} in the shape {have}, where the base checkpoint's config asks for {need}"
            )


def count_of(names: list[str]) -> str:
    return names[0][:120] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def weight_shapes(config: Json) -> Shapes:
    """The shapes of the weights by name. `config`: of the transformer. Raises `LoadError` for one that is damaged."""
    is_2_1 = config.get("_class_name") == CLASS_2_1
    sizes = {name: size_of(config, name, size) for name, size in (DEFAULTS_2_1 if is_2_1 else DEFAULTS).items()}
    return shapes_2_1(sizes) if is_2_1 else shapes_20b(sizes, bool(config.get("use_additional_t_cond")))


def size_of(config: Json, name: str, default: int) -> int:
    value: Any = config.get(name, default)
    if value is None and name == "out_channels":
        value = config.get("in_channels", default)
    if type(value) is not int or not 0 < value < (MAX_LAYERS if name == "num_layers" else MAX_SIZE):
        raise LoadError(f"a transformer with a {name} of {str(cast(object, value))[:40]} is none that can be loaded")
    return value


def shapes_20b(sizes: Mapping[str, int], has_additional_condition: bool) -> Shapes:
    head, text = sizes["attention_head_dim"], sizes["joint_attention_dim"]
    dim, channels = head * sizes["num_attention_heads"], sizes["in_channels"]
    layers = dict(linear("time_text_embed.timestep_embedder.linear_1", TIME_CHANNELS, dim))
    layers |= linear("time_text_embed.timestep_embedder.linear_2", dim, dim)
    layers |= {"txt_norm.weight": (text,)} | linear("img_in", channels, dim) | linear("txt_in", text, dim)
    if has_additional_condition:
        layers["time_text_embed.addition_t_embedding.weight"] = (2, dim)
    for block in blocks(sizes["num_layers"]):
        for stream in ("img", "txt"):
            layers |= linear(f"{block}.{stream}_mod.1", dim, 6 * dim)
            layers |= linear(f"{block}.{stream}_mlp.net.0.proj", dim, 4 * dim)
            layers |= linear(f"{block}.{stream}_mlp.net.2", 4 * dim, dim)
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            layers |= linear(f"{block}.attn.{name}", dim, dim)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            layers[f"{block}.attn.{name}.weight"] = (head,)
    return layers | linear("norm_out.linear", dim, 2 * dim) | linear("proj_out", dim, patch_channels(sizes))


def shapes_2_1(sizes: Mapping[str, int]) -> Shapes:
    head, text = sizes["attention_head_dim"], sizes["context_in_dim"]
    dim = head * sizes["num_attention_heads"]
    inner, patch = dim * sizes["mlp_ratio"], sizes["patch_size"] ** 2
    layers: Shapes = {"txt_in.text_norm.weight": (text,)}
    matrices = {
        "time_text_embed.timestep_embedder.linear_1": (dim, TIME_CHANNELS),
        "time_text_embed.timestep_embedder.linear_2": (dim, dim),
        "txt_in.in_layer": (dim, text),
        "txt_in.out_layer": (dim, dim),
        "img_in": (dim, sizes["in_channels"] * patch),
        "modulation.1": (4 * dim, dim),
        "norm_out.linear": (dim, dim),
        "proj_out": (patch_channels(sizes), dim),
    }
    for block in blocks(sizes["num_layers"]):
        matrices |= {f"{block}.attn.{name}": (dim, dim) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        matrices |= {f"{block}.img_mlp.{name}": (inner, dim) for name in ("proj", "gate_layer")}
        matrices[f"{block}.img_mlp.out"] = (dim, inner)
        layers |= {f"{block}.attn.{name}.weight": (head,) for name in ("norm_q", "norm_k")}
    return layers | {f"{name}.weight": shape for name, shape in matrices.items()}


def patch_channels(sizes: Mapping[str, int]) -> int:
    return sizes["patch_size"] ** 2 * sizes["out_channels"]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def blocks(count: int) -> Iterable[str]:
    return (f"transformer_blocks.{number}" for number in range(count))
