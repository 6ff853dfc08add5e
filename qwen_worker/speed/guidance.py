"""Guidance's two passes in one: below a megapixel a pass does not fill a GPU, and two rows cost little more than one.

Published: 1.8 times the pictures a second with two of 512 x 512 in a call, 1.02 with two of 1024 x 1024. The pipelines
call the transformer twice a step, with the same latents and another prompt. After the first step the second prompt is
known: the first call computes both, [x; x] with [prompt; negative prompt], and the second is answered from what the
first left. The shorter prompt is padded behind its end, where tokens that the attention masks move no other's position.
A call that is not the expected one, by the very tensors that it passes, is computed as it comes.

Equal up to the rounding of a batch's matrix products. Everything around stays: a step is still two calls, progress and
stops come after it. Memory: twice the activations of a picture below a megapixel, and each megapixel takes 0.36 GiB
of them, against 1.32 GiB that plans keep for decoding it. Does not cover step caches, which keep a history for each of
the two passes, layered models, nor 2.1. Imports torch: import it inside functions. Knows nothing of jobs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FILLS = 4096  # of a pass's tokens of pictures, all rows together: with as many (1024 x 1024) a GPU is busy
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
SAME = ("hidden_states", "img_shapes", "attention_kwargs", "guidance", "return_dict")  # in both of a step's calls


@contextmanager
def together(transformer: Any) -> Iterator["Pairs"]:
    """Within, the transformer computes both passes of a step in one where the picture is small."""
    own = vars(transformer).get("forward")
    pairs = Pairs(transformer.forward)
    transformer.forward = pairs.forward
    try:
        yield pairs
    finally:
        del transformer.forward
        if own is not None:
            transformer.forward = own


class Pairs:
    """The passes of one pipeline call after another. `shared`: how many steps were computed in one pass."""

    def __init__(self, stock: Any):
        self.stock, self.shared = stock, 0
        self.last: dict[str, Any] | None = None  # the arguments of the pass before
        self.pair: tuple[dict, dict] | None = None  # the prompts of a step's two passes, once seen
        self.answer: tuple[dict, torch.Tensor] | None = None  # the second pass's arguments, and its result

    def forward(self, *args: Any, **inputs: Any) -> Any:
        if args or set(inputs) != {*SAME, TEXT, MASK, "timestep"} or inputs["return_dict"] or inputs["guidance"]:
            self.last = self.pair = self.answer = None
            return self.stock(*args, **inputs)
        if self.answer:
            (text, latents), result = self.answer
            self.answer = None
            if inputs[TEXT] is text and inputs["hidden_states"] is latents:
                return (result,)
        before, self.last = self.last, inputs
        if self.pair and inputs[TEXT] is self.pair[0][TEXT]:
            return self.both(inputs)
        # Two passes over the same latents with other prompts are a step's.
        second = before and inputs["hidden_states"] is before["hidden_states"] and inputs[TEXT] is not before[TEXT]
        rows, tokens, _ = inputs["hidden_states"].shape
        self.pair = (before, inputs) if second and rows * tokens < FILLS else None
        return self.stock(**inputs)

    def both(self, inputs: dict[str, Any]) -> tuple[torch.Tensor]:
        """The result of the first pass; the second's is kept for its call."""
        negative, latents = self.pair[1], inputs["hidden_states"]
        rows = len(latents)
        texts, masks = zip(padded(inputs, negative), padded(negative, inputs), strict=True)
        self.shared += 1
        (result,) = self.stock(
            **inputs
            | {
                "hidden_states": torch.cat([latents, latents]),
                "timestep": inputs["timestep"].repeat(2),
                TEXT: torch.cat(texts),
                MASK: torch.cat(masks),
                # The pipelines give a shape for each prompt, not for each of its pictures.
                "img_shapes": inputs["img_shapes"][:1] * (2 * rows),
            }
        )
        first, second = result.chunk(2)
        self.answer = (negative[TEXT], latents), second
        return (first,)


def padded(inputs: dict[str, Any], other: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A pass's text and its mask, as long as the longer of two passes."""
    text, mask = inputs[TEXT], inputs[MASK]
    rows, tokens, _ = text.shape
    if mask is None:  # none of its tokens is padding
        mask = torch.ones(rows, tokens, dtype=torch.bool, device=text.device)
    more = max(tokens, other[TEXT].shape[1]) - tokens
    return torch.nn.functional.pad(text, (0, 0, 0, more)), torch.nn.functional.pad(mask.bool(), (0, more))
