"""Checkpoints that are stored quantized: drawn as the plain ones and planned by their bytes, or refused by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_tiny import evaluate
from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Gpu, Machine, read_machine
from qwen_worker.settings import Precision

from ..conftest import picture_of, run
from ..support.stored_quantized import (
    TRANSFORMER,
    edit_config,
    store_text_encoder_nf4,
    store_transformer_int8,
    store_transformer_nf4,
)

STEPS = 8


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny generate checkpoint that a test may change."""
    return Path(shutil.copytree(tiny / "generate", tmp_path / "own" / "copy"))


WAYS = [store_transformer_nf4, store_transformer_int8, store_text_encoder_nf4]


@pytest.mark.parametrize("store", WAYS)
def test_what_is_stored_quantized_is_drawn_like_the_plain_one_and_has_the_planned_bytes(
    copy, cold_worker, store, sample
):
    """Both pictures must be right; with --prove one of 24 may be wrong, which is 4.2 points of the score."""
    store(copy)
    worker = cold_worker(QWEN_IMAGE_MODEL=str(copy), QWEN_FALLBACK="forbid")
    prompts = evaluate.sample_prompts(sample(2, 24), seed=11, size=(256, 256))
    pictures = []
    for number, prompt in enumerate(prompts):
        fields = {"prompt": prompt.text, "width": 256, "height": 256, "num_inference_steps": STEPS, "seed": number}
        body = run(worker, fields)
        assert "error" not in body, body["error"]
        pictures.append(picture_of(body["output"]["image"]))
    right = [all(answers.values()) for answers in evaluate.judge_prompts(pictures, prompts)]
    assert sum(right) >= sample(2, 23)
    loaded = worker.pipelines.get("generate")
    held = sum(held_bytes(getattr(loaded.pipe, name)) for name in checkpoint.WEIGHTS)
    plan, model = loaded.plan, loaded.plan.models[0]
    planned = plan.transformer_bytes(model) + plan.text_encoder_bytes(model) + plan.vae_bytes(model)
    assert planned == pytest.approx(held, rel=0.05)
    assert "as it is stored" in str(loaded.plan)


def held_bytes(module):
    """Of a module's weights, with the parts of quantized ones."""
    total = 0
    for parameter in module.parameters():
        state = getattr(parameter, "quant_state", None)
        if hasattr(parameter, "__tensor_flatten__") and type(parameter.data) is not torch.Tensor:
            total += sum(getattr(parameter, part).nbytes for part in parameter.__tensor_flatten__()[0])
        else:
            total += parameter.nbytes
        if state is not None:
            total += sum(tensor.nbytes for tensor in state.as_dict(packed=True).values())
    return total


def reason(folder, cold_worker):
    reply = run(cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_FALLBACK="forbid"), {"prompt": "a red circle"})
    assert reply["error"].startswith("model_unavailable: ")
    return reply["error"].removeprefix("model_unavailable: ")


@pytest.mark.parametrize(
    ("component", "entry", "sentence"),
    [
        ("transformer", {"quant_method": "sdnq"}, "sdnq, and the package sdnq that loads it is not installed"),
        ("text_encoder", {"quant_method": "modelopt"}, "modelopt, which is not loaded here; served are bitsandbytes"),
        ("transformer", {"quant_method": "fp8"}, "transformer/ is stored quantized by fp8, which is not loaded here"),
        ("vae", {"quant_method": "torchao"}, "vae/ is stored quantized by torchao, which is not loaded here"),
        ("transformer", {"load_in_8bit": True}, "bitsandbytes in 8 bits, and diffusers cannot load it: RuntimeError"),
        ("transformer", [], "transformer/config.json is corrupt: quantization_config is not an object"),
        ("transformer", 7, "transformer/config.json is corrupt: quantization_config is not an object"),
        ("transformer", {}, "transformer/config.json is corrupt: quantization_config names no quant_method"),
        ("transformer", {"quant_method": ["x"]}, "quantization_config names no quant_method"),
        ("transformer", {"quant_method": "../x"}, "quantization_config names no quant_method"),
        ("transformer", {"quant_method": "bitsandbytes"}, "says neither load_in_4bit nor load_in_8bit"),
        ("transformer", {str(n): 0 for n in range(1000)}, "quantization_config has 1,000 fields, and at most 100"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused_by_the_name_of_its_library(copy, cold_worker, component, entry, sentence):
    edit_config(copy, component, entry)
    assert sentence in reason(copy, cold_worker)


def test_a_matrix_of_another_size_is_refused_by_name(copy, cold_worker):
    import bitsandbytes.functional as bnb

    store_transformer_nf4(copy)
    name, stored = "transformer_blocks.0.attn.to_q.weight", load_file(copy / TRANSFORMER)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(name)}
    stored[name], state = bnb.quantize_4bit(torch.zeros(64, 64, dtype=torch.bfloat16), quant_type="nf4")
    stored |= {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    save_file(stored, copy / TRANSFORMER)
    assert f"{name} is stored in the shape (64, 64) where the component's config asks for" in reason(copy, cold_worker)


def test_no_plan_changes_what_is_stored_quantized(copy, tiny):
    """It is loaded as it is, and computes its modulation; what is beside it is planned as ever."""
    store_transformer_nf4(copy)
    found = checkpoint.inspect(copy)
    stored = sum(file.stat().st_size for file in (copy / "transformer").glob("*.safetensors"))
    gpu = Gpu("card", (8, 9), 24 * 10**9, 24 * 10**9)
    models = [as_model(found, []), as_model(checkpoint.inspect(tiny / "edit"), [found])]
    for precision in (Precision.AUTO, Precision.INT8, Precision.NF4):
        plan = placement.plan(models, Machine(gpu, 10**11, 10**11), precision)
        assert plan.transformer_bytes(models[0]) == pytest.approx(stored, rel=0.05)
        assert not plan.table and not plan.swapped
    with pytest.raises(LoadError, match="QWEN_PRECISION=fp32 is not for own/copy, whose transformer are stored"):
        placement.plan(models, read_machine(), Precision.FP32)


def test_a_quantized_20b_model_is_refused_on_a_cpu(copy):
    """Its bytes are few, and its products as many as ever."""
    store_transformer_nf4(copy)
    model = as_model(checkpoint.inspect(copy), [])
    large = dict(model.packed) | {"transformer": 11 * 10**9}
    machine = Machine(None, 10**12, 10**12)
    with pytest.raises(LoadError, match="a CPU serves at most 2 billion parameters, not 22"):
        placement.plan([replace(model, packed=large)], machine)


def test_nothing_is_prepared_of_what_is_stored_quantized(copy, tmp_path, monkeypatch, capsys):
    from qwen_worker import prepare

    store_transformer_nf4(copy)
    with pytest.raises(SystemExit, match="It is stored quantized already"):
        prepare.main([str(copy), "--output", str(tmp_path / "out")])
