"""The transformer's block by torch.compile: its norms, modulation, rotary embedding and gates in a few fused kernels.

One block is compiled, and all blocks use the result: weights and modulation rows are inputs to it, and no block holds a
constant of its own. Sizes are dynamic: two or three graphs draw pictures and prompts of any size and length (one
picture; several with padded prompts; the rows of Edit-2511's references; in INT8, short texts), and a new size does not
wait for another graph. The compiled code lies beneath diffusers' hooks, so that step caches work as without it.

LoRAs are inputs too, once they are padded (`lora/padded.py`): as many graphs again draw pictures with LoRAs of any
number, layers and rank. Graphs are compiled while the model is loaded, for what the endpoint is set up to draw. While a
picture is drawn, torch looks only once for the graph of each kind of call (`known_graphs.py`).

Not bit-equal: kernels keep intermediate results in float32 that are rounded to bfloat16 otherwise, and sums run in
another order. Blocks that do not compile are drawn by stock's code, and the log says why. CUDA graphs are left out:
they take the addresses of weights as constants, so each of 60 blocks would be recorded for each size, and the
transformer at 1024 x 1024 keeps a GPU busy without them. Does not cover the text encoder and the VAE, which run once a
picture. Imports torch: import it inside functions. Knows nothing of where compiled code is kept, nor of jobs.
"""

import contextlib
import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch._inductor.config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from ..errors import describe_error
from ..log import log_line
from ..memory.failures import Failure, attempt
from ..model.modulation import ModulationTable
from .known_graphs import KnownGraphs

# That compile kernels beside each other, in RAM that no plan counts. torch starts one for each core, up to 32 of a
# machine whose cores a container sees and may not use; a graph has 12 to 15 kernels.
COMPILE_PROCESSES = 4
COMPILE_VARIABLE = "TORCHINDUCTOR_COMPILE_THREADS"  # by which the environment says how many
MAX_GRAPHS = 32  # of one block in its lifetime: for batches, masks, references, LoRAs, and sets of those not padded
# Of the picture with which blocks are compiled ahead of jobs, in the transformer's tokens. 64 tokens: 1024 pixels. Two
# sizes that are equal while a graph is traced have to be equal ever after: no number of tokens is one of LoRAs' ranks.
WARM_SIDE = {"cuda": 64, "cpu": 10}
WARM_TEXT, SHORT_TEXT = 50, 6  # tokens of a prompt; short: of a negative prompt that says nothing

BlockResults = tuple[torch.Tensor, torch.Tensor]  # text and picture, (batch, tokens, dim) each
Comparison = Callable[[BlockResults, BlockResults], str]  # (ours, plain) -> why ours are wrong, empty if they are right
Report = Callable[[str], None]


def ignore(reason: str) -> None:
    """Report nothing."""


class CompiledBlocks:
    """The blocks of one transformer, compiled when they are first used."""

    def __init__(self, transformer: Any, report_failure: Report = ignore, report_checks: Report = ignore):
        """`report_failure` is called with the reason when a block does not compile: stock's code draws from then on.

        `report_checks` is called with the reason why torch has to check every call of a block.
        """
        self.transformer, self.report_failure = transformer, report_failure
        self.is_off = False
        self.compare: Comparison | None = None  # the next block's results with stock's, while graphs are compiled ahead
        block_class = type(transformer.transformer_blocks[0])
        self.stock = block_class.forward
        self.compiled = KnownGraphs(compiled_forward(block_class), self.stock, report_checks)
        for block in transformer.transformer_blocks:
            block.forward = types.MethodType(self.forward, block)

    def forward(self, block: Any, **inputs: Any) -> Any:
        """What the block's class returns, by compiled code where it compiles."""
        if self.is_off:
            return self.stock(block, **inputs)
        try:
            results = self.compiled(block, **{name: copy_view(value) for name, value in with_mask(inputs).items()})
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            cause = getattr(error, "inner_exception", error)  # what a backend raised
            self.turn_off(describe_error(cause))
            return self.stock(block, **inputs)
        return self.compared(results, block, inputs, self.compare) if self.compare else results

    def compared(self, results: BlockResults, block: Any, inputs: dict[str, Any], compare: Comparison) -> BlockResults:
        """What a graph gave; turned off where stock's code gives something else."""
        self.compare = None
        plain = attempt(lambda: self.stock(block, **inputs))
        if isinstance(plain, Failure):  # as for want of memory, of which stock's code takes more
            log_line(None, "WARN", f"a compiled block was not compared with stock's: {plain.reason}")
        elif reason := compare(results, plain):
            self.turn_off(reason)
        return results

    def turn_off(self, reason: str) -> None:
        self.is_off = True
        self.report_failure(reason)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Within, stock's code draws."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before

    @contextlib.contextmanager
    def try_with(self, report_failure: Report) -> Iterator[None]:
        """Within, something is drawn that others do without, such as padded LoRAs.

        What does not compile, or compiles to something wrong, is reported here, and keeps nothing after this from being
        drawn compiled.
        """
        before = self.is_off, self.report_failure
        self.report_failure = report_failure
        try:
            yield
        finally:
            self.is_off, self.report_failure = before

    @torch.no_grad()
    def warm(
        self,
        table: ModulationTable | None,
        references: int,
        passes: Iterable[tuple[int, int]],
        compare: Comparison | None = None,
    ) -> None:
        """Compile for the usual jobs ahead of them.

        `passes`: (rows, tokens of text) of each pass to compile for; `references`: input pictures of each; `compare`:
        what the first block of each gives with what stock's code does.
        """
        config, dtype, device = self.transformer.config, self.transformer.dtype, self.transformer.device
        side, is_layered = WARM_SIDE[device.type], config.use_additional_t_cond
        shapes = [(1, side, side)] * (1 + references)
        if table:
            table.prepare(torch.ones(1, dtype=dtype, device=device))
        options = {"dtype": dtype, "device": device}
        noise = {**options, "generator": torch.Generator(device).manual_seed(0)}
        try:
            for batch, tokens in passes:
                self.compare = compare
                self.transformer(
                    hidden_states=torch.randn(batch, sum(map(math.prod, shapes)), config.in_channels, **noise),
                    encoder_hidden_states=torch.randn(batch, tokens, config.joint_attention_dim, **noise),
                    # A prompt alone is not padded, and has no mask; prompts that share a pass differ in length.
                    encoder_hidden_states_mask=torch.ones(batch, tokens, device=device) if batch > 1 else None,
                    timestep=torch.ones(batch, **options),
                    img_shapes=[shapes] * batch,
                    attention_kwargs={},
                    additional_t_cond=torch.zeros(batch, dtype=torch.long, device=device) if is_layered else None,
                    return_dict=False,
                )
        finally:
            self.compare = None


@functools.cache
def compiled_forward(block_class: Any) -> Callable[..., Any]:
    """The class's `forward`, compiled when it is called: transformers with blocks of one class share its graphs."""
    limit_compile_processes()
    # fullgraph: a break in the graph would cost what compiling gains, and nothing would say so.
    return torch.compile(block_class.forward, fullgraph=True, dynamic=True, **keep_graphs(MAX_GRAPHS))


def limit_compile_processes() -> None:
    """Have torch compile kernels in few processes, unless the environment says in how many."""
    config = torch._inductor.config
    if COMPILE_VARIABLE not in os.environ and config.compile_threads is not None:
        config.compile_threads = min(config.compile_threads, COMPILE_PROCESSES)


def keep_graphs(limit: int) -> dict[str, Any]:
    """What `torch.compile` is to be given to keep so many graphs of one function.

    torch 2.11 takes no such option: its setting for the whole process is set instead.
    """
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": limit}
    torch._dynamo.config.recompile_limit = limit
    return {}


def with_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """A block's inputs, with a mask where there are several rows, of which no token is masked if they came without.

    Prompts of one length come without, and would take a graph of their own, compiled within the first job of such.
    """
    text = inputs["encoder_hidden_states"]
    if inputs["encoder_hidden_states_mask"] is not None or len(text) == 1:
        return inputs
    return inputs | {"encoder_hidden_states_mask": text.new_ones(text.shape[:2], dtype=torch.bool)}


def copy_view(value: Any) -> Any:
    """A copy of a tensor that is a view of another one; any other value itself.

    A graph that was traced with a view would be traced anew for a tensor that is none.
    """
    return value.clone() if isinstance(value, torch.Tensor) and value._is_view() else value
