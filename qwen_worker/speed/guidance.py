"""Guidance's two passes in one: below a megapixel a pass does not fill a GPU, and two rows cost little more than one.

Published: 1.8 times the pictures a second with two of 512 x 512 in a call, 1.02 with two of 1024 x 1024. The pipelines
call the transformer twice a step, with the same latents and two prompts. The first step shows both prompts. From then
on a step's first call computes both passes, [x; x] with [prompt; negative prompt], and its second call is answered with
the second result. The shorter prompt is padded behind its end: the attention masks these tokens, and they move no
other token's position. A call that does not pass the expected tensors themselves is computed as it comes.

Equal up to the rounding of a batch's matrix products. Nothing else changes: a step is still two calls, progress and
stops come after it. Memory: twice the activations of a picture below a megapixel. Activations take 0.36 GiB for each
megapixel, against 1.32 GiB that plans keep for decoding it. Does not cover step caches, which keep a history for each
of the two passes, layered models, nor 2.1. Imports torch: import it inside functions. Knows nothing of jobs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..model.overrides import overridden

FULL_PASS_TOKENS = 4096  # of pictures, all rows of a pass together: as many (1024 x 1024) keep a GPU busy
TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
RESIDUALS = "controlnet_block_samples"  # which a ControlNet gives for both of a step's calls
# In both of a step's calls:
SAME = (RESIDUALS, "hidden_states", "img_shapes", "attention_kwargs", "guidance", "return_dict")

Inputs = dict[str, Any]  # of the transformer's forward, by name


@contextmanager
def share_passes(transformer: Any) -> Iterator["PassSharing"]:
    """Within, the transformer computes both passes of a step in one where the picture is small."""
    sharing = PassSharing(transformer.forward)
    with overridden(transformer, "forward", sharing.forward):
        yield sharing


class PassSharing:
    """The passes of one pipeline call after another. `shared`: how many steps were computed in one pass."""

    def __init__(self, stock: Callable[..., Any]):
        self.stock, self.shared = stock, 0
        self.previous: Inputs | None = None  # of the pass before this one
        self.pair: tuple[Inputs, Inputs] | None = None  # of a step's two passes, which show the two prompts
        # The text and the latents of the second pass, by which its call is recognized, and its result.
        self.answer: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """What the transformer would return, from the result that waits for this call, or computed."""
        whole = {"guidance": None, RESIDUALS: None, **inputs}  # not every pipeline passes these two in every call
        if args or set(whole) != {*SAME, TEXT, MASK, "timestep"} or whole["return_dict"] or whole["guidance"]:
            self.previous = self.pair = self.answer = None
            return self.stock(*args, **inputs)
        inputs = whole
        if self.answer:
            text, latents, result = self.answer
            self.answer = None
            if inputs[TEXT] is text and inputs["hidden_states"] is latents:
                return (result,)
        before, self.previous = self.previous, inputs
        if self.pair and inputs[TEXT] is self.pair[0][TEXT]:
            return self.compute_both(inputs, self.pair[1])
        rows, tokens, _ = inputs["hidden_states"].shape
        self.pair = None
        if before and inputs["hidden_states"] is before["hidden_states"] and inputs[TEXT] is not before[TEXT]:
            # Two passes over the same latents with two prompts are those of one step.
            self.pair = (before, inputs) if rows * tokens < FULL_PASS_TOKENS else None
        return self.stock(**inputs)

    def compute_both(self, inputs: Inputs, negative: Inputs) -> tuple[torch.Tensor]:
        """The result of a step's first pass; that of the second is kept for its call.

        `negative`: the inputs of a second pass, for its prompt.
        """
        latents = inputs["hidden_states"]
        rows = len(latents)
        texts, masks = zip(padded_text(inputs, negative), padded_text(negative, inputs), strict=True)
        self.shared += 1
        (result,) = self.stock(
            **inputs
            | {
                "hidden_states": torch.cat([latents, latents]),
                "timestep": inputs["timestep"].repeat(2),
                RESIDUALS: inputs[RESIDUALS] and [torch.cat([sample, sample]) for sample in inputs[RESIDUALS]],
                TEXT: torch.cat(texts),
                MASK: torch.cat(masks),
                # The pipelines give a shape for each prompt, not for each of its pictures.
                "img_shapes": inputs["img_shapes"][:1] * (2 * rows),
            }
        )
        first, second = result.chunk(2)
        self.answer = negative[TEXT], latents, second
        return (first,)


def padded_text(inputs: Inputs, other: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """A pass's text (B, tokens, dim) and its mask (B, tokens), with as many tokens as the longer one of two passes."""
    text, mask = inputs[TEXT], inputs[MASK]
    rows, tokens, _ = text.shape
    if mask is None:  # no token of this text is padding
        mask = torch.ones(rows, tokens, dtype=torch.bool, device=text.device)
    more = max(tokens, other[TEXT].shape[1]) - tokens
    return torch.nn.functional.pad(text, (0, 0, 0, more)), torch.nn.functional.pad(mask.bool(), (0, more))
