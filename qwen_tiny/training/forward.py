"""The transformer's forward pass for training: the stock weights, in fewer and larger operations, on chosen tokens.

Equal to `QwenImageTransformer2DModel.forward` (a test holds it to 1e-4 of values up to 8), with three differences that
training needs and the pipelines do not have:

- Any of a picture's tokens may be left out. Each token that stays carries the log of how many it stands for, which is
  added to attention's logits at its key: the softmax over the chosen tokens then estimates the one over all of them.
- The image states between the blocks are returned on request, for losses of their own.
- One block is compiled, where there is a compiler: 1.7 times the steps a second on two CPU cores, because most of the
  stock time at this width goes into small elementwise operations. Each new shape costs half a minute to compile.

Knows the layers of the class, peft's adapters on them, and nothing about what is learned.
"""

import functools
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from diffusers import QwenImageControlNetModel, QwenImageTransformer2DModel

Shape = tuple[int, int, int]  # frames, rows and columns of a picture's tokens

LINEARS = (
    "img_mod.1", "txt_mod.1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj",
    "attn.add_v_proj", "attn.to_out.0", "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2",
    "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")
EPSILON = 1e-6  # of every norm of the class
WRITTEN_OUT_TOKENS = 520  # up to which attention written out is faster than the fused kernel's two passes on a CPU


def velocity(
    transformer: "QwenImageTransformer2DModel",
    latents: torch.Tensor,
    sigma: torch.Tensor,
    states: torch.Tensor,
    mask: torch.Tensor,
    places: "TokenPlaces",
    taps: Collection[int] = (),
    residuals: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The predicted velocity (B, S, 64), and the image states (B, S, dim) after each of the blocks in `taps`.

    `latents` (B, S, 64): the chosen tokens of all joined pictures. `sigma` (B,) in [0, 1]. `states` (B, T, 128) and
    `mask` (B, T) bool: the prompt. `places`: those of the prompt's tokens and of the chosen ones. `residuals`, each
    (B, S, dim): what a ControlNet adds after the blocks, spread over them as the class spreads it.
    """
    image = _linear(transformer.img_in, latents).float()
    image, tapped = _run_blocks(transformer, image, sigma, states, mask, places, taps, residuals)
    condition = F.silu(_timestep(transformer, sigma))
    scale, shift = _linear(transformer.norm_out.linear, condition).float().unsqueeze(1).chunk(2, dim=-1)
    return _linear(transformer.proj_out, layer_norm(image) * (1 + scale) + shift).float(), tapped


def control_residuals(
    controlnet: "QwenImageControlNetModel",
    latents: torch.Tensor,
    control: torch.Tensor,
    sigma: torch.Tensor,
    states: torch.Tensor,
    mask: torch.Tensor,
    places: "TokenPlaces",
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A ControlNet's residuals and its image states, one of each for a block of it, all (B, S, dim).

    `control` (B, S, 64): the control picture's latents at the chosen tokens. The others: as for `velocity`.
    """
    image = (_linear(controlnet.img_in, latents) + _linear(controlnet.controlnet_x_embedder, control)).float()
    every = range(len(controlnet.transformer_blocks))
    _, states_after = _run_blocks(controlnet, image, sigma, states, mask, places, every)
    out = zip(controlnet.controlnet_blocks, states_after, strict=True)
    return [_linear(layer, state).float() for layer, state in out], states_after


def _run_blocks(
    transformer: "QwenImageTransformer2DModel | QwenImageControlNetModel",
    image: torch.Tensor,
    sigma: torch.Tensor,
    states: torch.Tensor,
    mask: torch.Tensor,
    places: "TokenPlaces",
    taps: Collection[int],
    residuals: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    text = _linear(transformer.txt_in, _rms(states, transformer.txt_norm.weight)).float()
    condition = F.silu(_timestep(transformer, sigma))
    ignored = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e4)
    bias = torch.cat([ignored, places.log_counts], dim=1)[:, None, None]
    heads = transformer.config.num_attention_heads
    tapped = []
    for index, block in enumerate(transformer.transformer_blocks):
        image, text = compiled(_block)(
            block_tensors(block), image, text, condition, bias, places.cosine, places.sine, heads
        )
        if residuals:
            image = image + residuals[index // math.ceil(len(transformer.transformer_blocks) / len(residuals))]
        if index in taps:
            tapped.append(image)
    return image, tapped


@dataclass(frozen=True)
class TokenPlaces:
    """Where a batch's tokens of prompt and pictures lie, and how many tokens of the whole pictures each stands for."""

    cosine: torch.Tensor  # (B, T + S, head dim / 2) of the rotary angles
    sine: torch.Tensor
    log_counts: torch.Tensor  # (B, S)

    @classmethod
    def build(
        cls,
        transformer: "QwenImageTransformer2DModel",
        shapes: Sequence[Shape],
        text_tokens: int,
        chosen: torch.Tensor,
        log_counts: torch.Tensor,
    ) -> "TokenPlaces":
        """`shapes`: those of the joined pictures. `chosen` (B, S): indices into all their tokens."""
        image, text = rotary_table(transformer, tuple(shapes), text_tokens)
        angles = torch.cat([text.expand(len(chosen), -1, -1), image[chosen]], dim=1)
        return cls(angles.real.contiguous(), angles.imag.contiguous(), log_counts)

    def to(self, device: torch.device) -> "TokenPlaces":
        return TokenPlaces(self.cosine.to(device), self.sine.to(device), self.log_counts.to(device))


@functools.lru_cache(maxsize=256)
def rotary_table(
    transformer: "QwenImageTransformer2DModel", shapes: tuple[Shape, ...], text_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class's own rotary table: unit complex numbers (image tokens, 16) and (text tokens, 16)."""
    return transformer.pos_embed([list(shapes)], max_txt_seq_len=text_tokens, device=torch.device("cpu"))


def block_tensors(block: torch.nn.Module) -> list[torch.Tensor]:
    """The block's weights in the order in which `_block` takes them, adapters added in."""
    linears = [tensor for name in LINEARS for tensor in _weight_and_bias(block.get_submodule(name))]
    return linears + [block.get_submodule(name).weight for name in NORMS]


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def fastest_dtype(device: str) -> torch.dtype:
    """The dtype for matrix products: bfloat16, but float32 on a CPU without AVX-512, where bfloat16 takes ten times."""
    is_slow = device == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.float32 if is_slow else torch.bfloat16


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function compiled, where there is a C++ compiler; otherwise as it is."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return function
    torch._dynamo.config.cache_size_limit = 64  # shapes: sizes of pictures, with and without gradients
    return torch.compile(function, dynamic=False)


def _block(
    tensors: list[torch.Tensor],
    image: torch.Tensor,
    text: torch.Tensor,
    condition: torch.Tensor,
    bias: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One `QwenImageTransformerBlock`: `image` (B, S, dim) and `text` (B, T, dim) as they leave it.

    `bias` (B, 1, 1, T + S) is added to attention's logits.
    """
    end = 2 * len(LINEARS)
    layer = dict(zip(LINEARS, zip(tensors[:end:2], tensors[1:end:2], strict=True), strict=True))
    norms = tensors[end:]
    shifts = [
        F.linear(condition, *layer[name]).float().unsqueeze(1).chunk(6, dim=-1) for name in ("img_mod.1", "txt_mod.1")
    ]
    image_in, text_in = (layer_norm(x) * (1 + m[1]) + m[0] for x, m in zip((image, text), shifts, strict=True))
    of_image = _project(layer, image_in, heads, "attn.to_q", "attn.to_k", "attn.to_v")
    of_text = _project(layer, text_in, heads, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    query = torch.cat([_rms(of_text[0], norms[2]), _rms(of_image[0], norms[0])], dim=1)
    key = torch.cat([_rms(of_text[1], norms[3]), _rms(of_image[1], norms[1])], dim=1)
    value = torch.cat([of_text[2], of_image[2]], dim=1)
    query, key = (_rotate(x, cosine, sine).to(value.dtype) for x in (query, key))
    mixed = _attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), bias)
    count = text.shape[1]
    image = image + shifts[0][2] * F.linear(mixed[:, count:], *layer["attn.to_out.0"])
    text = text + shifts[1][2] * F.linear(mixed[:, :count], *layer["attn.to_add_out"])
    image = image + shifts[0][5] * _mlp(layer, "img_mlp", layer_norm(image) * (1 + shifts[0][4]) + shifts[0][3])
    text = text + shifts[1][5] * _mlp(layer, "txt_mlp", layer_norm(text) * (1 + shifts[1][4]) + shifts[1][3])
    return image, text


def _project(
    layer: dict[str, tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor, heads: int, *names: str
) -> list[torch.Tensor]:
    """Several projections of the same input as one matrix product: each (B, tokens, heads, head dim)."""
    weight, bias = (torch.cat(parts) for parts in zip(*(layer[name] for name in names), strict=True))
    return [part.unflatten(-1, (heads, -1)) for part in F.linear(x, weight, bias).chunk(len(names), dim=-1)]


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(B, heads, tokens, head dim) -> (B, tokens, dim)."""
    if query.shape[2] <= WRITTEN_OUT_TOKENS:
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5 + bias
        mixed = torch.softmax(logits, dim=-1).to(value.dtype) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    return mixed.transpose(1, 2).flatten(2)


def _mlp(layer: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(F.linear(x, *layer[f"{name}.net.0.proj"]), approximate="tanh")
    return F.linear(hidden, *layer[f"{name}.net.2"])


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Each pair of (B, tokens, heads, head dim) turned by its angle."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    return torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1).flatten(-2)


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON) * weight


def _timestep(transformer: "QwenImageTransformer2DModel", sigma: torch.Tensor) -> torch.Tensor:
    half = 128
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=sigma.device) / half)
    angles = 1000 * sigma.float().unsqueeze(1) * frequencies
    embed = transformer.time_text_embed.timestep_embedder
    hidden = F.silu(_linear(embed.linear_1, torch.cat([angles.cos(), angles.sin()], dim=-1)))
    condition = _linear(embed.linear_2, hidden).float()
    if transformer.config.use_additional_t_cond:  # the layered pipeline always asks for the first of the two
        condition = condition + transformer.time_text_embed.addition_t_embedding.weight[0].float()
    return condition


def _linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _weight_and_bias(linear: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a linear layer; of one with peft adapters, what its active ones make of it."""
    if not hasattr(linear, "base_layer"):
        return linear.weight, linear.bias
    weight = linear.base_layer.weight
    for name in linear.active_adapters:
        weight = weight + linear.scaling[name] * (linear.lora_B[name].weight @ linear.lora_A[name].weight)
    return weight, linear.base_layer.bias
