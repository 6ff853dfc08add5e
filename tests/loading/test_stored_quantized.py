"""Checkpoints that are stored quantized: drawn as the plain ones and planned by their bytes, or refused by name."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_tiny import evaluate
from qwen_worker.checkpoints import checkpoint, classes
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Gpu, Machine, read_machine
from qwen_worker.model_settings import Precision

from ..conftest import picture_of, run
from ..support.stored_quantized import (
    NF4,
    TEXT_ENCODER,
    TRANSFORMER,
    edit_config,
    store_text_encoder_nf4,
    store_transformer_int8,
    store_transformer_llm_int8,
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
    held = sum(held_bytes(getattr(loaded.pipe, name)) for name in classes.WEIGHTS)
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
        ("vae", {"quant_method": "torchao"}, "torchao, which is not loaded here; needed are weights that are not"),
        ("vae", NF4, "bitsandbytes in 4 bits, which is not loaded here; needed are weights that are not quantized"),
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


def test_weights_in_8_bits_of_bitsandbytes_ask_for_a_card(copy, cold_worker):
    store_transformer_llm_int8(copy)
    assert "bitsandbytes in 8 bits, and diffusers cannot load it: RuntimeError" in reason(copy, cold_worker)


def load_reason(folder):
    """Why the folder cannot be planned for; none of its weights has been read."""
    with pytest.raises(LoadError) as caught:
        checkpoint.inspect(folder)
    return caught.value.reason


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize(
    ("entry", "stored"),
    [
        (NF4, "bitsandbytes in 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
    ],
)
def test_a_quantization_config_over_plain_weights_is_refused_by_name(copy, component, entry, stored):
    edit_config(copy, component, entry)
    assert load_reason(copy) == (
        f"{component}/config.json says in quantization_config that the weights are stored by {stored}, and they are "
        "plain ones: they can be loaded once quantization_config is taken out"
    )


def test_a_checkpoint_that_is_not_what_it_says_gives_a_stand_in_or_model_unavailable(copy, cold_worker):
    edit_config(copy, "text_encoder", NF4)
    assert "and they are plain ones" in reason(copy, cold_worker)
    reply = run(cold_worker(QWEN_IMAGE_MODEL=str(copy)), {"prompt": "a red circle", "width": 256, "height": 256})
    metadata = reply["output"]["metadata"]
    assert metadata["backend"] == "pil-fallback" and "and they are plain ones" in metadata["fallback_reason"]


@pytest.mark.parametrize("file", [TRANSFORMER, TEXT_ENCODER, "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_whole_numbers_without_a_quantization_config_are_refused_by_name(copy, file, dtype):
    stored = load_file(copy / file)
    name = next(name for name, tensor in stored.items() if name.endswith(".weight") and tensor.ndim > 1)
    save_file(stored | {name: stored[name].to(dtype)}, copy / file)
    assert load_reason(copy) == (
        f"{file.split('/')[0]}/ holds 1 weights as whole numbers, {name} among them, and its config.json has no "
        "quantization_config that says what they mean"
    )


def state(**changes):
    """Of a weight in 4 bits, what bitsandbytes says of it, with changes."""
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 48]} | changes
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


STATE = "quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("store", [store_transformer_nf4, store_text_encoder_nf4])
@pytest.mark.parametrize(
    ("part", "damaged", "words"),
    [
        ("quant_map", None, "its quant_map is missing"),
        ("quant_map", torch.zeros(8), "its quant_map has 8 numbers as F32, not 16 as F32"),
        ("quant_map", torch.zeros(16, dtype=torch.float16), "its quant_map has 16 numbers as F16, not 16 as F32"),
        ("absmax", None, "its absmax is missing"),
        ("absmax", torch.zeros(3), "its absmax has 3 numbers as F32, not "),
        ("absmax", torch.zeros(3, dtype=torch.uint8), ""),
        (STATE, None, "its quant_state is missing or cannot be read"),
        (STATE, torch.zeros(40, dtype=torch.uint8), "its quant_state is missing or cannot be read"),
        (STATE, state(blocksize=[64]), "its quant_state makes no sense"),
        (STATE, state(blocksize=64.0), "its quant_state makes no sense"),
        (STATE, state(shape=[10**1000] * 8), "its quant_state makes no sense"),
        (STATE, state(shape="32x48"), "its quant_state makes no sense"),
        (STATE, state(dtype="os"), "its quant_state makes no sense"),
        (STATE, state(shape=[4, 4]), " bytes, where its quant_state says 16 numbers"),
        ("", None, "the weight itself is missing"),
        ("", torch.zeros(5, 1, dtype=torch.uint8), "has 5 bytes, where its quant_state says "),
    ],
)
def test_damaged_parts_of_a_weight_in_4_bits_are_told_by_their_name(copy, nf4_folder, store, part, damaged, words):
    file = TRANSFORMER if store is store_transformer_nf4 else TEXT_ENCODER
    shutil.rmtree(copy)
    shutil.copytree(nf4_folder(store), copy)
    stored = load_file(copy / file)
    name = next(
        name.removesuffix(".absmax") for name, t in stored.items() if name.endswith(".absmax") and t.dtype is F32
    )
    key = f"{name}.{part}" if part else name
    stored = {other: tensor for other, tensor in stored.items() if other != key}
    save_file(stored | ({} if damaged is None else {key: damaged}), copy / file, metadata={"format": "pt"})
    found = load_reason(copy)
    label = f"{file.split('/')[0]}/ is damaged: {name} is stored by bitsandbytes in 4 bits"
    assert found.startswith(label) and words in found


F32 = torch.float32


@pytest.fixture(scope="module")
def nf4_folder(tiny, tmp_path_factory):
    """nf4_folder(store): the tiny checkpoint, one component of it stored in 4 bits."""

    @functools.cache
    def stored_by(store):
        folder = shutil.copytree(tiny / "generate", tmp_path_factory.mktemp("nf4") / "copy")
        store(folder)
        return folder

    return stored_by


def test_scales_that_are_quantized_themselves_need_their_own(copy, nf4_folder):
    shutil.rmtree(copy)
    shutil.copytree(nf4_folder(store_transformer_nf4), copy)
    whole = load_file(copy / TRANSFORMER)
    for part, words in (("nested_absmax", "is missing"), ("nested_quant_map", "is missing")):
        name = next(name for name in whole if name.endswith(part))
        save_file({other: tensor for other, tensor in whole.items() if other != name}, copy / TRANSFORMER)
        assert load_reason(copy).endswith(f"and its {part} {words}")


def test_weights_in_8_bits_need_a_scale_for_each_row(copy):
    store_transformer_llm_int8(copy)
    whole = load_file(copy / TRANSFORMER)
    scale = next(name for name in whole if name.endswith(".SCB"))
    save_file({name: tensor for name, tensor in whole.items() if name != scale}, copy / TRANSFORMER)
    assert load_reason(copy).endswith("is stored by bitsandbytes in 8 bits, and its SCB is missing")
    save_file(whole | {scale: torch.zeros(3)}, copy / TRANSFORMER)
    assert ", and its SCB has 3 numbers as F32, not " in load_reason(copy)


def test_a_matrix_of_another_size_is_refused_by_name(copy, cold_worker):
    import bitsandbytes.functional as bnb

    store_transformer_nf4(copy)
    name, stored = "transformer_blocks.0.attn.to_q.weight", load_file(copy / TRANSFORMER)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(name)}
    stored[name], state = bnb.quantize_4bit(torch.zeros(64, 64, dtype=torch.bfloat16), quant_type="nf4")
    stored |= {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    save_file(stored, copy / TRANSFORMER)
    assert f"{name} is stored in the shape (64, 64) where the component's config asks for" in reason(copy, cold_worker)


def test_a_matrix_of_the_text_encoder_that_says_another_shape_is_refused_by_name(copy, cold_worker):
    store_text_encoder_nf4(copy)
    stored = load_file(copy / TEXT_ENCODER)
    name = next(name.removesuffix(f".{STATE}") for name in stored if name.endswith(f"down_proj.weight.{STATE}"))
    fields = json.loads(bytes(stored[f"{name}.{STATE}"].tolist()))
    fields["shape"].reverse()
    stored[f"{name}.{STATE}"] = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)
    save_file(stored, copy / TEXT_ENCODER, metadata={"format": "pt"})
    assert f"is stored in the shape {tuple(fields['shape'])} where the component's config asks" in reason(
        copy, cold_worker
    )


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
