"""Joint attention of the picture's and the text's tokens in real numbers, and the order in which kernels are asked.

Stock multiplies pairs of a head's channels, taken as complex numbers x = a + ib, by e^(i phi). torch's compiler has no
complex numbers, and breaks a block's kernel in three at them. `rotate` computes the same from tables of cos phi and
sin phi in float32: (a, b) -> (a cos phi - b sin phi, b cos phi + a sin phi). Products, sums and precision are the same,
so the result is bit-equal where no compiler contracts them to fused multiply-adds, which round once less (one unit in
the last place of float32, before the rounding to bfloat16). Each channel is computed by itself, from its own value and
its pair's: joined from two halves, query and key would be written, and copied once more to where attention reads them.
Without compiling `rotate` is slower: it pays in compiled blocks, where all of it is one kernel.

`scaled_dot_product_attention` takes the first kernel of an order that can do the call. Torch for CUDA 12 asks its own
FlashAttention 2 before cuDNN's kernel, which uses the asynchronous tensor cores of Hopper and data-centre Blackwell:
its wheels bring a cuDNN with a fault in gradients, which the worker does not compute. Torch for CUDA 13 asks a newer
cuDNN first by itself. `prefer_cudnn` changes the order and excludes no kernel: a mask or a shape that cuDNN does not
take goes to the next one. diffusers' own switch (`set_attention_backend("_native_cudnn")`) allows cuDNN alone and fails
there; its other backends need packages (flash-attn, kernels, sageattention) that the image does not have. Equal up to
the order of sums.

Imports torch and diffusers: import it inside functions. Covers neither tensor nor context parallelism, nor
Qwen-Image-2.1, which has a rotary embedding of its own. Knows nothing of when which order is the better one.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

# For each channel of a pair (a, b): cos and cos, and -sin and sin; (tokens, 1, channels) each, in float32.
Angles = tuple[torch.Tensor, torch.Tensor]
PROJECTIONS = {"picture": ("to_q", "to_k", "to_v"), "text": ("add_q_proj", "add_k_proj", "add_v_proj")}


def use_real_rotary(transformer: Any) -> None:
    """Have the transformer's blocks attend by `JointAttention`, with angles in real numbers."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(JointAttention())
    transformer.pos_embed = RealRotary(transformer.pos_embed)


def use_stock_rotary(transformer: Any) -> None:
    """Undo `use_real_rotary`."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(QwenDoubleStreamAttnProcessor2_0())
    transformer.pos_embed = transformer.pos_embed.stock


class RealRotary(torch.nn.Module):
    """Stands where the transformer's `pos_embed` stood; gives the angles of the picture and of the text as real."""

    def __init__(self, stock: torch.nn.Module):
        super().__init__()
        self.stock = stock

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Angles, Angles]:
        picture, text = self.stock(*args, **kwargs)  # of each (tokens, channels / 2), complex
        return real_angles(picture), real_angles(text)


def real_angles(frequencies: torch.Tensor) -> Angles:
    """(tokens, channels / 2), complex -> for each channel what it and what its pair's is multiplied by."""
    cos, sin = frequencies.real.unsqueeze(1), frequencies.imag.unsqueeze(1)
    own, other = torch.stack([cos, cos], dim=-1), torch.stack([-sin, sin], dim=-1)
    return own.flatten(-2), other.flatten(-2)


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """(B, tokens, heads, channels), rotated by the angles of its positions; computes in float32, as stock."""
    own, other = angles
    x_float = x.float()
    swapped = x_float.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # b and a
    return (x_float * own + swapped * other).type_as(x)


class JointAttention(QwenDoubleStreamAttnProcessor2_0):
    """Stock's processor but for the rotary embedding.

    A subclass, because diffusers sets attention backends on its own processors alone.
    """

    # The base class takes complex angles, and is annotated to return one tensor where it returns two.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Angles, Angles] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, picture's tokens, dim) and (B, text's tokens, dim) -> the same shapes, attended.

        `encoder_hidden_states_mask`: True where a token of the text is attended to, (B, text's tokens).
        `attention_mask` is a parameter of the base class; nobody passes it.
        """
        assert attn.to_out is not None and attn.to_add_out is not None  # Qwen-Image's attention has both
        angles = image_rotary_emb or (None, None)
        picture = heads(attn, hidden_states, "picture", attn.norm_q, attn.norm_k, angles[0])
        text = heads(attn, encoder_hidden_states, "text", attn.norm_added_q, attn.norm_added_k, angles[1])
        mask = None
        if encoder_hidden_states_mask is not None:
            picture_mask = encoder_hidden_states_mask.new_ones(hidden_states.shape[:2])
            mask = torch.cat([encoder_hidden_states_mask, picture_mask], dim=1)[:, None, None, :]
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, picture, strict=True))
        attended = dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        tokens = encoder_hidden_states.shape[1]
        # to_out[1] is a dropout, which does nothing when a picture is drawn.
        return attn.to_out[0](attended[:, tokens:].contiguous()), attn.to_add_out(attended[:, :tokens].contiguous())


def heads(
    attn: Attention, x: torch.Tensor, stream: str, norm_q: Any, norm_k: Any, angles: Angles | None
) -> list[torch.Tensor]:
    """Query, key and value of one stream, (B, tokens, heads, channels); query and key normalized and rotated."""
    channels = attn.inner_dim // attn.heads
    query, key, value = (getattr(attn, name)(x).unflatten(-1, (-1, channels)) for name in PROJECTIONS[stream])
    query, key = query if norm_q is None else norm_q(query), key if norm_k is None else norm_k(key)
    return [query, key, value] if angles is None else [rotate(query, angles), rotate(key, angles), value]


def prefer_cudnn() -> AbstractContextManager[object]:
    """Within, torch asks cuDNN's attention kernel first, and its other kernels after it."""
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)
