"""Quantized transformers and text encoders: what is quantized and what never is."""

import dataclasses

import pytest
import torch
from torch import _inductor as inductor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_worker.checkpoints.checkpoint import inspect
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.loading.components import load_component
from qwen_worker.memory import placement
from qwen_worker.memory.machine import read_machine
from qwen_worker.model import quantization
from qwen_worker.model_settings import Precision

KINDS = {Precision.FP8: "Float8Tensor", Precision.INT8: "Int8Tensor", Precision.NF4: "Params4bit"}
CLASSES = {
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
}


def loaded(tiny, component, precision, **changes):
    found = inspect(tiny / "edit")
    plan = placement.plan([as_model(found, [])], read_machine(), precision)
    return load_component(found, component, CLASSES[component], dataclasses.replace(plan, **changes))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("precision", KINDS)
def test_the_blocks_matrices_are_quantized_and_nothing_else(tiny, precision, table):
    transformer = loaded(tiny, "transformer", precision, table=table)
    quantized = {n for n, p in transformer.named_parameters() if type(p).__name__ == KINDS[precision]}
    expected = {
        name
        for name, module in transformer.transformer_blocks.named_modules()
        if isinstance(module, torch.nn.Linear) and "_mod" not in name
    }
    assert quantized == {f"transformer_blocks.{name}.weight" for name in expected} and len(quantized) == 5 * 12
    rest = {name: p for name, p in transformer.named_parameters() if name not in quantized}
    assert {type(p) for p in rest.values()} == {torch.nn.Parameter}
    assert {p.dtype for p in rest.values()} == {torch.bfloat16}
    for layer in ("img_in", "txt_in", "time_text_embed.timestep_embedder.linear_1", "norm_out.linear", "proj_out"):
        assert f"{layer}.weight" in rest
    assert ("transformer_blocks.0.img_mod.1.weight" in rest) is not table


@pytest.mark.parametrize("precision", KINDS)
def test_the_text_encoder_keeps_its_eyes_in_bfloat16(tiny, precision):
    model = loaded(tiny, "text_encoder", precision, text_encoder="quantized")
    kinds = {name: type(parameter).__name__ for name, parameter in model.named_parameters()}
    assert all(kind == KINDS[precision] for name, kind in kinds.items() if ".mlp." in name and "language" in name)
    assert {kind for name, kind in kinds.items() if "visual" in name or "embed_tokens" in name} == {"Parameter"}


@pytest.mark.parametrize("precision", KINDS)
def test_a_worker_draws_in_every_precision(cold_worker, precision):
    from ..conftest import run

    worker = cold_worker(QWEN_PRECISION=precision)
    body = run(worker, {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2})
    assert body["output"]["metadata"]["backend"] == "qwen-image"
    assert [one["precision"] for one in run(worker, {"task": "health"})["output"]["models"]] == [precision.value]


def test_quantized_pictures_are_judged_like_those_of_bfloat16(sample):
    """A picture of 24 is 4.2 points, one of 8 is 12.5; the figures of a larger sample are in benchmarks/results."""
    from types import SimpleNamespace

    from benchmarks import quality

    options = SimpleNamespace(prompts=sample(8, 24), steps=12, size=256, precisions=list(quality.PRECISIONS))
    rows = {row["precision"]: row for row in quality.precisions(options)}
    for precision, points, psnr in (("fp8", 5, 43), ("int8", 5, 43), ("nf4", 13, 34)):
        assert abs(rows[precision]["all"] - rows["bf16"]["all"]) <= sample(13, points), rows
        assert rows[precision]["PSNR"] > psnr - sample(2, 0)


# On a card


def test_products_in_int8_on_a_card_are_cuda_s_own_and_have_the_rows_that_it_asks_for(monkeypatch):
    """Fake tensors stand for a card's. torchao's own product would print them, and copy the matrix."""
    from torchao.kernel import intmm

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if function is torch.ops.aten._int_mm.default:
                asked.append((arguments[0].shape[0], arguments[1].is_contiguous()))
            if function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
                copied.append(result.numel())
            if function is torch.ops.aten._local_scalar_dense.default:
                pytest.fail("a number is read back from the card")
            return result

    asked, copied = [], []
    monkeypatch.setattr(intmm, "safe_int_mm", lambda *_: pytest.fail("torchao's own product"))
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda _: pytest.fail("a tensor is printed"))
    with FakeTensorMode():
        layer = torch.nn.Linear(64, 32, device="cuda", dtype=torch.bfloat16)
        quantization.weight_quantizer("transformer", Precision.INT8, "cuda")(torch.nn.Sequential(layer), "0.weight")
        quantization.use_own_int8_product()
        quantization.use_own_int8_product()
        inputs = [torch.zeros(1, count, 64, device="cuda", dtype=torch.bfloat16) for count in (6, 16, 17)]
        with Products():
            rows = [layer(each).shape[1] for each in inputs]
    assert asked == [(17, False)] * 3 and rows == [6, 16, 17]
    assert 32 * 64 not in copied  # numbers of the matrix


def test_a_product_that_cuda_does_not_do_is_torchao_s(monkeypatch):
    product = quantization.direct_product(lambda rows, matrix: "torchao's")
    on_cpu = torch.zeros(17, 8, dtype=torch.int8), torch.zeros(8, 8, dtype=torch.int8)
    assert product(*on_cpu) == "torchao's"
    with FakeTensorMode():
        rows, matrix = (torch.zeros(*shape, dtype=torch.int8, device="cuda") for shape in ((17, 8), (8, 9)))
        assert product(rows, matrix) == "torchao's"
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert product(rows, matrix[:, :8]) == "torchao's"


def test_rows_that_are_added_change_nothing_and_few_rows_are_one_graph_more():
    def product(rows, matrix):
        return rows.to(torch.int32) @ matrix.to(torch.int32)

    graphs = CompileCounter()
    compiled = torch.compile(quantization.padded_product(product), backend=graphs, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(-128, 128, (24, 8), dtype=torch.int8, generator=generator)
    for count in (40, 30, 6, 11, 17, 16):
        rows = torch.randint(-128, 128, (count, 24), dtype=torch.int8, generator=generator)
        assert torch.equal(compiled(rows, matrix), product(rows, matrix))
    assert graphs.frame_count == 2


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_torch_s_compiler_is_left_as_it_is_set(precision):
    before = inductor.config.save_config()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16))
    quantization.weight_quantizer("transformer", precision, "cpu")(model, "0.weight")
    assert type(model[0].weight).__name__ == KINDS[precision] and inductor.config.save_config() == before
