"""Joint attention of the picture's and the text's tokens, as diffusers computes it, with room for what is faster.

Stock's processor, but the rotary embedding may be real (`rotary.py`) and the three projections of a stream one product
(`fused_qkv.py`). Without either it computes what stock computes, operation by operation.
Imports torch and diffusers: import it inside functions. Covers neither tensor nor context parallelism.
"""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    apply_rotary_emb_qwen,
)

from .fused_qkv import STREAMS, projected
from .rotary import rotate


class JointAttention(QwenDoubleStreamAttnProcessor2_0):
    """A subclass, because diffusers sets attention backends on what it knows."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, picture's tokens, dim) and (B, text's tokens, dim) -> the same, attended.

        `encoder_hidden_states_mask`: True where a token of the text may be seen, (B, text's tokens). `attention_mask`
        is the base class's, and never given.
        """
        picture = heads(attn, hidden_states, "picture", attn.norm_q, attn.norm_k)
        text = heads(attn, encoder_hidden_states, "text", attn.norm_added_q, attn.norm_added_k)
        if image_rotary_emb is not None:
            picture, text = turned(picture, image_rotary_emb[0]), turned(text, image_rotary_emb[1])
        mask = None
        if encoder_hidden_states_mask is not None:
            seen = encoder_hidden_states_mask.new_ones(hidden_states.shape[:2])
            mask = torch.cat([encoder_hidden_states_mask, seen], dim=1)[:, None, None, :]
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, picture, strict=True))
        attended = dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        tokens = encoder_hidden_states.shape[1]
        # to_out[1] is a dropout, which does nothing here
        return attn.to_out[0](attended[:, tokens:].contiguous()), attn.to_add_out(attended[:, :tokens].contiguous())


def heads(attn: Attention, x: torch.Tensor, stream: str, norm_q, norm_k) -> list[torch.Tensor]:
    """Query, key and value of one stream, (B, tokens, heads, channels), query and key normalized."""
    channels = attn.inner_dim // attn.heads
    parts = projected(attn, stream, x) or [getattr(attn, name)(x) for name in STREAMS[stream]]
    query, key, value = (part.unflatten(-1, (-1, channels)) for part in parts)
    return [query if norm_q is None else norm_q(query), key if norm_k is None else norm_k(key), value]


def turned(stream: list[torch.Tensor], angles: torch.Tensor | tuple) -> list[torch.Tensor]:
    """Query and key by their positions' angles; values have no position."""
    if isinstance(angles, torch.Tensor):
        query, key = (apply_rotary_emb_qwen(x, angles, use_real=False) for x in stream[:2])
    else:
        query, key = (rotate(x, angles) for x in stream[:2])
    return [query, key, stream[2]]


def put(transformer: torch.nn.Module) -> None:
    """Have every block attend by it."""
    for block in transformer.transformer_blocks:
        if not isinstance(block.attn.processor, JointAttention):
            block.attn.set_processor(JointAttention())
