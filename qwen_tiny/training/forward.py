"""The transformer's forward pass for training: the stock weights, in fewer and larger operations, on chosen tokens.

Equal to `QwenImageTransformer2DModel.forward` (a test holds it to 1e-4 of values up to 8), with three differences that
training needs and the pipelines do not have:

- Any of a picture's tokens may be left out. Each token that stays carries the log of how many it stands for, which is
  added to attention's logits at its key: the softmax over the chosen tokens then estimates the one over all of them.
- What the blocks hand on can be tapped, for losses of its own.
- One block is compiled, where there is a compiler: 1.7 times the steps a second on two CPU cores, because most of the
  stock time at this width goes into small elementwise operations. Each new shape costs half a minute to compile.

Knows the layers of the class, peft's adapters on them, and nothing about what is learned.
"""

import functools
import math
import shutil
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LINEARS = (
    "img_mod.1", "txt_mod.1", "attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj",
    "attn.add_v_proj", "attn.to_out.0", "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2",
    "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")
EPSILON = 1e-6  # of every norm of the class
WRITTEN_OUT = 520  # tokens up to which attention written out is faster than the fused kernel's two passes on a CPU


def velocity(transformer, latents, sigma, states, mask, places, taps=()):
    """The predicted velocity (B, S, 64), and the image states (B, S, dim) that the blocks in `taps` hand on.

    `latents` (B, S, 64): the chosen tokens of all joined pictures. `sigma` (B,) in [0, 1]. `states` (B, T, 128) and
    `mask` (B, T) bool: the prompt. `places`: the `Places` of both.
    """
    image = _linear(transformer.img_in, latents).float()
    text = _linear(transformer.txt_in, _rms(states, transformer.txt_norm.weight)).float()
    condition = F.silu(_timestep(transformer, sigma))
    bias = torch.cat([torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e4), places.counts], dim=1)
    heads = transformer.config.num_attention_heads
    tapped = []
    for index, block in enumerate(transformer.transformer_blocks):
        image, text = faster(_block)(
            weights(block), image, text, condition, bias[:, None, None], places.cosine, places.sine, heads
        )
        if index in taps:
            tapped.append(image)
    scale, shift = _linear(transformer.norm_out.linear, condition).float().unsqueeze(1).chunk(2, dim=-1)
    return _linear(transformer.proj_out, layer_norm(image) * (1 + scale) + shift).float(), tapped


@dataclass(frozen=True)
class Places:
    """Where a batch's tokens of prompt and pictures lie, and how many tokens of the whole pictures each stands for."""

    cosine: torch.Tensor  # (B, T + S, head dim / 2) of the rotary angles
    sine: torch.Tensor
    counts: torch.Tensor  # (B, S), as logs

    @classmethod
    def of(cls, transformer, shapes, text_tokens, chosen, counts):
        """`shapes`: (frames, rows, columns) of the joined pictures; `chosen` (B, S): indices into all their tokens."""
        image, text = rotary(transformer, tuple(shapes), text_tokens)
        angles = torch.cat([text.expand(len(chosen), -1, -1), image[chosen]], dim=1)
        return cls(angles.real.contiguous(), angles.imag.contiguous(), counts)

    def to(self, device):
        return Places(self.cosine.to(device), self.sine.to(device), self.counts.to(device))


@functools.lru_cache(maxsize=256)
def rotary(transformer, shapes, text_tokens):
    """The class's own rotary table: unit complex numbers (image tokens, 16) and (text tokens, 16)."""
    return transformer.pos_embed([list(shapes)], max_txt_seq_len=text_tokens, device=torch.device("cpu"))


def weights(block):
    """The block's tensors in the order in which `_block` takes them, adapters added in."""
    found = [tensor for name in LINEARS for tensor in _adapted(block.get_submodule(name))]
    return found + [block.get_submodule(name).weight for name in NORMS]


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


@functools.cache
def faster(function):
    """The function compiled, where there is a C++ compiler; otherwise as it is."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return function
    torch._dynamo.config.cache_size_limit = 64  # shapes: sizes of pictures, with and without gradients
    return torch.compile(function, dynamic=False)


def _block(tensors, image, text, condition, bias, cosine, sine, heads):
    """One `QwenImageTransformerBlock`. `bias` (B, 1, 1, T + S) is added to attention's logits."""
    end = 2 * len(LINEARS)
    layer = dict(zip(LINEARS, zip(tensors[:end:2], tensors[1:end:2], strict=True), strict=True))
    norms = tensors[end:]
    shifts = [
        F.linear(condition, *layer[name]).float().unsqueeze(1).chunk(6, dim=-1) for name in ("img_mod.1", "txt_mod.1")
    ]
    image_in, text_in = (layer_norm(x) * (1 + m[1]) + m[0] for x, m in zip((image, text), shifts, strict=True))
    ours = _together(layer, image_in, heads, "attn.to_q", "attn.to_k", "attn.to_v")
    theirs = _together(layer, text_in, heads, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    query = torch.cat([_rms(theirs[0], norms[2]), _rms(ours[0], norms[0])], dim=1)
    key = torch.cat([_rms(theirs[1], norms[3]), _rms(ours[1], norms[1])], dim=1)
    value = torch.cat([theirs[2], ours[2]], dim=1)
    query, key = (_rotated(x, cosine, sine).to(value.dtype) for x in (query, key))
    mixed = _attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), bias)
    count = text.shape[1]
    image = image + shifts[0][2] * F.linear(mixed[:, count:], *layer["attn.to_out.0"])
    text = text + shifts[1][2] * F.linear(mixed[:, :count], *layer["attn.to_add_out"])
    image = image + shifts[0][5] * _mlp(layer, "img_mlp", layer_norm(image) * (1 + shifts[0][4]) + shifts[0][3])
    text = text + shifts[1][5] * _mlp(layer, "txt_mlp", layer_norm(text) * (1 + shifts[1][4]) + shifts[1][3])
    return image, text


def _together(layer, x, heads, *names):
    """Several projections of the same input as one matrix product: each (B, tokens, heads, head dim)."""
    weight, bias = (torch.cat(parts) for parts in zip(*(layer[name] for name in names), strict=True))
    return [part.unflatten(-1, (heads, -1)) for part in F.linear(x, weight, bias).chunk(len(names), dim=-1)]


def _attention(query, key, value, bias):
    """(B, heads, tokens, head dim) -> (B, tokens, dim)."""
    if query.shape[2] <= WRITTEN_OUT:
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5 + bias
        mixed = torch.softmax(logits, dim=-1).to(value.dtype) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    return mixed.transpose(1, 2).flatten(2)


def _mlp(layer, name, x):
    hidden = F.gelu(F.linear(x, *layer[f"{name}.net.0.proj"]), approximate="tanh")
    return F.linear(hidden, *layer[f"{name}.net.2"])


def _rotated(x, cosine, sine):
    """Each pair of (B, tokens, heads, head dim) turned by its angle."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    return torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1).flatten(-2)


def _rms(x, weight):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON) * weight


def _timestep(transformer, sigma):
    half = 128
    angles = 1000 * sigma.float().unsqueeze(1) * _frequencies(half, sigma.device)
    embed = transformer.time_text_embed.timestep_embedder
    hidden = F.silu(_linear(embed.linear_1, torch.cat([angles.cos(), angles.sin()], dim=-1)))
    return _linear(embed.linear_2, hidden).float()


def _frequencies(half, device):
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half)


def _linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def _adapted(linear):
    """Weight and bias of a linear layer; of one with peft adapters, what its active ones make of it."""
    if not hasattr(linear, "base_layer"):
        return linear.weight, linear.bias
    weight = linear.base_layer.weight
    for name in linear.active_adapters:
        weight = weight + linear.scaling[name] * (linear.lora_B[name].weight @ linear.lora_A[name].weight)
    return weight, linear.base_layer.bias
