"""The transformer's forward pass without a wait for the card: the host can queue a step while the card draws another.

Stock's pass copies numbers from the host where a prompt is padded (the text's length, which nobody reads), and in
Edit-2511 (for each of 8,192 and more tokens, whether it is an input picture's). Such a copy ends when all that was
queued before it is done, so the card idles until the next kernels arrive. Here the first is left out, and the card
counts the second by itself. Bit-equal to stock.

On a card, texts that share a pass are padded until all tokens together can be divided by 8. Attention's kernels read a
mask in such steps: torch pads a mask of another length in each block, and has a graph for each of both cases. Padding
is masked: equal up to the order of attention's sums.

Covers neither gradients nor models that embed guidance. Imports torch and diffusers: import it inside
functions. Knows nothing of what the blocks do with what they get.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

ALIGNMENT = 8  # tokens, of which attention's kernels read a mask
Shape = tuple[int, int, int]  # frames, rows and columns of a picture's tokens


class WaitFreeTransformer(QwenImageTransformer2DModel):
    """Stock's but for its `forward`."""

    # The base class also takes what no pipeline of the worker passes.
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        img_shapes: Sequence[Sequence[Shape]],
        encoder_hidden_states_mask: torch.Tensor | None = None,
        guidance: None = None,
        attention_kwargs: dict[str, Any] | None = None,
        additional_t_cond: torch.Tensor | None = None,
        controlnet_block_samples: Sequence[torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """(B, picture's tokens, channels), (B, text's tokens, dim) and (B,) -> (B, picture's tokens, channels).

        `img_shapes`: for each row those of the picture and of its input pictures; `encoder_hidden_states_mask`: not 0
        where a token of the text is attended to, (B, text's tokens). `controlnet_block_samples`: what is added to the
        picture's states, each (B, picture's tokens, dim), spread over the blocks as stock spreads them.
        """
        assert guidance is None
        picture = self.img_in(hidden_states)
        timestep = timestep.to(picture.dtype)
        input_rows = None
        if self.zero_cond_t:  # input pictures are modulated as at timestep 0
            timestep = torch.cat([timestep, timestep * 0])
            input_rows = input_index(img_shapes, picture.device)
        mask = None if encoder_hidden_states_mask is None else encoder_hidden_states_mask.bool()
        if len(picture) > 1 and picture.is_cuda:
            encoder_hidden_states, mask = aligned(encoder_hidden_states, mask, picture.shape[1])
        text = self.txt_in(self.txt_norm(encoder_hidden_states))
        temb = self.time_text_embed(timestep, picture, additional_t_cond)
        rotary = self.pos_embed(img_shapes, max_txt_seq_len=text.shape[1], device=picture.device)
        samples = controlnet_block_samples or ()
        blocks_a_sample = math.ceil(len(self.transformer_blocks) / max(1, len(samples)))
        for index, block in enumerate(self.transformer_blocks):
            text, picture = block(
                hidden_states=picture,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                temb=temb,
                image_rotary_emb=rotary,
                joint_attention_kwargs=attention_kwargs,
                modulate_index=input_rows,
            )
            if samples:
                picture = picture + samples[index // blocks_a_sample]
        if self.zero_cond_t:
            temb = temb.chunk(2)[0]
        output = self.proj_out(self.norm_out(picture, temb))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def aligned(
    text: torch.Tensor, mask: torch.Tensor | None, picture_tokens: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, tokens, dim) and its mask (B, tokens), with as many masked tokens behind them as `ALIGNMENT` asks for."""
    more = -(text.shape[1] + picture_tokens) % ALIGNMENT
    if not more:
        return text, mask
    if mask is None:  # no token of these texts is padding
        mask = text.new_ones(text.shape[:2], dtype=torch.bool)
    return torch.nn.functional.pad(text, (0, 0, 0, more)), torch.nn.functional.pad(mask, (0, more))


def input_index(shapes: Sequence[Sequence[Shape]], device: torch.device) -> torch.Tensor:
    """0 for each token of the picture, 1 for those of its input pictures: (B, tokens) of int32, counted on `device`."""
    rows: list[torch.Tensor] = []
    for own, *inputs in shapes:
        tokens = math.prod(own) + sum(map(math.prod, inputs))
        rows.append(torch.arange(tokens, device=device) >= math.prod(own))
    return torch.stack(rows).int()
