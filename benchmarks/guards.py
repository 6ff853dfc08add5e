"""The host's microseconds for a call of a compiled block: with torch's checks (guards), and without.

Three ways in turns, in one process: torch checks every call; the worker's, where torch has checked the first call of a
kind; and torch's own `skip_guard_eval_unsafe`, which the worker does not use. Blocks of the released architecture, but
narrow: what the host does for a call does not depend on a matrix's width, and here the arithmetic is small beside it.
What is left in all three is Inductor's wrapper with its kernels. Without LoRAs, and with padded ones. The time is the
thread's on the processor, so that other work on the machine counts less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

HEADS, CHANNELS, AXES = 2, 32, (8, 12, 12)
TEXT_CHANNELS, SIDE, TEXT = 96, 5, 11  # no two of which are equal, as sizes that are equal share a symbol in a graph


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--blocks", type=int, default=60, help="of the transformer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=41, help="passes of each way (default: %(default)s)")


def run(options: argparse.Namespace) -> tuple[list[dict], dict]:
    import torch

    from qwen_worker.lora.adapters import Adapters

    torch.set_num_threads(1)
    transformer = narrow_transformer(options.blocks)
    adapters = Adapters(transformer, None, transformer.dtype, "cpu")
    rows = []
    for name, loras in (("none", nullcontext), ("padded to rank 16", adapters.example)):
        with loras():
            rows += rows_of(transformer, name, options.repeats)
    return rows, {"blocks": options.blocks, "repeats": options.repeats, "torch": torch.__version__}


def narrow_transformer(blocks: int) -> Any:
    from diffusers import QwenImageTransformer2DModel

    from qwen_worker.speed import attention

    model = QwenImageTransformer2DModel(
        num_layers=blocks, attention_head_dim=CHANNELS, num_attention_heads=HEADS, axes_dims_rope=AXES,
        joint_attention_dim=TEXT_CHANNELS,
    )  # fmt: skip
    attention.use_real_rotary(model)
    return model.eval().requires_grad_(False)


def rows_of(transformer: Any, loras: str, repeats: int) -> list[dict]:
    """A row for each way."""
    import torch

    from qwen_worker.speed.compiled import CompiledBlocks
    from qwen_worker.speed.speedups import stock_blocks

    blocks = CompiledBlocks(transformer, print)
    unsafe = torch.compiler.set_stance
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "torch checks every call": nullcontext,
        "torch checks the first of a kind": blocks.compiled.remembered,
        "skip_guard_eval_unsafe": lambda: unsafe(skip_guard_eval_unsafe=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        given = inputs_of(transformer)
        call_all(transformer, given)  # compiles
        for _ in range(repeats):
            for name, way in ways.items():
                with way():
                    call_all(transformer, given)
                    started = time.thread_time()
                    call_all(transformer, given)
                    seconds[name].append(time.thread_time() - started)
    stock_blocks(transformer)
    median = {name: statistics.median(found) / len(transformer.transformer_blocks) for name, found in seconds.items()}
    slowest = median["torch checks every call"]
    return [
        {"LoRAs": loras, "way": name, "us a block": round(value * 1e6, 1), "ratio": round(value / slowest, 2)}
        for name, value in median.items()
    ]


def inputs_of(transformer: Any) -> dict[str, Any]:
    """What the blocks of a pass are given."""
    import torch

    given: dict[str, Any] = {}
    block, dtype = transformer.transformer_blocks[1], transformer.dtype
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    transformer(
        hidden_states=torch.randn(1, SIDE * SIDE, transformer.config.in_channels, dtype=dtype),
        encoder_hidden_states=torch.randn(1, TEXT, TEXT_CHANNELS, dtype=dtype),
        timestep=torch.full((1,), 0.5, dtype=dtype),
        img_shapes=[[(1, SIDE, SIDE)]],
        attention_kwargs={},
        return_dict=False,
    )
    hook.remove()
    return given


def call_all(transformer: Any, given: dict[str, Any]) -> None:
    for block in transformer.transformer_blocks:
        block(**given)
