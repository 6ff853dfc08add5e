"""What torch compiles a block of the released width to, for each generation of cards: down to the assembler's code."""

import math
import re

import pytest

from ..conftest import only_proved
from .card import Card
from .cases import ADA, AMPERE, AMPERE_PRO, BLACKWELL, HOPPER

B200 = (10, 0)
WIDTH = 3072  # of the transformer, and so of a token's query


def see_code(card):
    """The code of a block's graph, as kernels that Triton compiles and as what ptxas is given."""
    import os
    import tempfile
    from pathlib import Path

    import torch
    from diffusers import QwenImageTransformer2DModel
    from torch._inductor.utils import run_and_get_code

    from qwen_worker.speed import attention
    from qwen_worker.speed.compiled import CompiledBlocks

    from . import arithmetic

    folder = tempfile.mkdtemp()
    os.environ |= {"TRITON_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    torch._inductor.config.force_disable_caches = True  # what an earlier call has compiled is no proof
    kernels, failures = arithmetic.install(), []
    with torch.device("cuda"):
        transformer = QwenImageTransformer2DModel(num_layers=1).bfloat16()
    attention.use_real_rotary(transformer)
    blocks = CompiledBlocks(transformer, failures.append)
    _, code = run_and_get_code(blocks.warm, None, 0, [(1, 50)])
    del kernels
    code = "\n".join(code)
    assembled = [file.read_text() for file in Path(folder).rglob("*.ptx")]
    return {
        "failures": failures,
        "kernels": len(re.findall(r"async_compile\.triton\(", code)),
        "targets": sorted({target for text in assembled for target in re.findall(r"^\.target (\w+)", text, re.M)}),
        "binaries": len(list(Path(folder).rglob("*.cubin"))),
        "products": len(re.findall(r"extern_kernels\.(?:add)?mm\(", code)),
        "float32": re.findall(r"empty_strided_cuda\(\(([^)]*)\), \([^)]*\), torch\.float32\)", code),
        "code": code,
    }


def graphs_by_rank(card, ranks):
    """How many graphs torch has compiled once a block has been computed without LoRAs, and with those of each rank."""
    import torch
    from diffusers import QwenImageTransformer2DModel
    from torch._dynamo.utils import counters

    from qwen_worker.lora.adapters import Adapters
    from qwen_worker.speed.compiled import WARM_TEXT, CompiledBlocks

    from . import arithmetic

    torch._inductor.config.force_disable_caches = True
    kernels, failures, graphs = arithmetic.install(), [], []
    with torch.device("cuda"):
        transformer = QwenImageTransformer2DModel(num_layers=1).bfloat16()
    blocks = CompiledBlocks(transformer, failures.append)
    adapters = Adapters(transformer, None, torch.bfloat16, "cuda")
    blocks.warm(None, 0, [(1, WARM_TEXT)])
    for rank in ranks:
        graphs.append(counters["stats"]["unique_graphs"])
        with adapters.example(rank):
            blocks.warm(None, 0, [(1, WARM_TEXT), (1, rank)])
    graphs.append(counters["stats"]["unique_graphs"])
    del kernels
    return {"graphs": graphs, "failures": failures}


def test_a_graph_with_loras_serves_every_rank(on_card):
    """Also down to the kernels, whose compiler may take a size for a constant; and whatever the prompt's length."""
    seen = on_card(graphs_by_rank, Card(80, AMPERE_PRO, 64), [16, 48, 64, 144], seconds=1200)
    assert seen == {"graphs": [1, 2, 2, 2, 2], "failures": []}


@pytest.mark.parametrize(
    "capability",
    [AMPERE_PRO, *(pytest.param(other, marks=only_proved) for other in (AMPERE, ADA, HOPPER, B200, BLACKWELL))],
    ids=str,
)
def test_a_block_is_compiled_for_the_card_and_keeps_no_query_in_float32(on_card, capability):
    """A query that is rotated in float32 is rounded before it is written: half the bytes, twice a block and pass."""
    seen = on_card(see_code, Card(80, capability, 64))
    assert seen["failures"] == []
    major, minor = capability
    assert [target.rstrip("af") for target in seen["targets"]] == [f"sm_{major}{minor}"]
    assert seen["binaries"] > 0 and seen["products"] > 0
    sizes = [math.prod(int(size) for size in shape.split(", ") if size.isdigit()) for shape in seen["float32"]]
    assert all(size < WIDTH for size in sizes), seen["float32"]
