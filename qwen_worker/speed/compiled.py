"""The transformer's block by torch.compile: its norms, modulation, rotary embedding and gates in a few fused kernels.

One block is compiled and all use the result, since weights and modulation rows are inputs to it and nothing in a block
is a constant of its own. Sizes are dynamic: pictures and prompts of any size and length are drawn by two or three
graphs (one picture; several with padded prompts; the rows of Edit-2511's references; in INT8, short texts), none of
which waits for a new size. What is compiled lies beneath diffusers' hooks, so that step caches work as without.

A job's own LoRAs are drawn without: each would compile anew, for longer than it saves. The endpoint's are part of every
picture and are compiled in, one graph for each set of them.

Not bit-equal: kernels keep intermediate results in float32 that are rounded to bfloat16 otherwise, and sums run in
another order. Whatever does not compile is drawn as before, and said. CUDA graphs are left out: they take the addresses
of weights as constants, so each of 60 blocks would be recorded for each size, and the transformer at 1024 x 1024 keeps
a GPU busy without them. Does not cover the text encoder and the VAE, which run once a picture.
Imports torch: import it inside functions.
"""

import contextlib
import functools
import math
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from ..model.modulation import Table

GRAPHS = 16  # of one block in its lifetime: batches, masks, references, sets of LoRAs
WARM_SIDE = {"cuda": 64, "cpu": 8}  # of a picture that is compiled for, in the transformer's tokens; 64: 1024 pixels
WARM_TEXT, SHORT_TEXT = 48, 6  # tokens; short: of a negative prompt that says nothing


class CompiledBlocks:
    """The blocks of one transformer, compiled when they are first used."""

    def __init__(self, transformer: Any, tell: Callable[[str], None] = lambda why: None):
        """`tell` is given why the blocks are drawn without it from now on, if that happens."""
        self.transformer, self.tell = transformer, tell
        self.off = False
        self.compiled = compiled(type(transformer.transformer_blocks[0]))
        self.stock = type(transformer.transformer_blocks[0]).forward
        for block in transformer.transformer_blocks:
            block.forward = types.MethodType(self.forward, block)

    def forward(self, block: Any, **inputs: Any) -> Any:
        if self.off:
            return self.stock(block, **inputs)
        try:
            return self.compiled(block, **{name: whole(value) for name, value in inputs.items()})
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self.off = True
            cause = getattr(error, "inner_exception", error)  # what a backend raised
            self.tell(f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0][:200]}")
            return self.stock(block, **inputs)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within, the blocks are drawn as if they were not compiled."""
        before, self.off = self.off, True
        try:
            yield
        finally:
            self.off = before

    @torch.no_grad()
    def warm(self, table: Table | None, references: int, passes: Iterable[tuple[int, int]]) -> None:
        """Compile for the usual jobs ahead of them: `passes` are (batch, tokens of text), with as many references."""
        config, dtype, device = self.transformer.config, self.transformer.dtype, self.transformer.device
        side = WARM_SIDE[device.type]
        shapes = [(1, side, side)] * (1 + references)
        if table:
            table.prepare(torch.ones(1, dtype=dtype, device=device))
        for batch, tokens in passes:
            options = {"dtype": dtype, "device": device}
            self.transformer(
                hidden_states=torch.zeros(batch, sum(map(math.prod, shapes)), config.in_channels, **options),
                encoder_hidden_states=torch.zeros(batch, tokens, config.joint_attention_dim, **options),
                # A prompt alone is not padded; prompts that share a pass are of different lengths.
                encoder_hidden_states_mask=torch.ones(batch, tokens, device=device) if batch > 1 else None,
                timestep=torch.ones(batch, **options),
                img_shapes=[shapes] * batch,
                attention_kwargs={},
                return_dict=False,
            )


@functools.cache
def compiled(kind: type) -> Callable:
    """Blocks of one class have the same code: two transformers that are alike share its graphs."""
    # fullgraph: a break would cost what is gained, and without a word
    return torch.compile(kind.forward, fullgraph=True, dynamic=True, recompile_limit=GRAPHS)


def whole(value: Any) -> Any:
    """A tensor by itself: of one that is a part of another a graph would expect that it always is."""
    return value.clone() if isinstance(value, torch.Tensor) and value._is_view() else value
