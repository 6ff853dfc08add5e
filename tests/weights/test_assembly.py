"""Components by our reader against their libraries' own loading: every parameter the same, every lack refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_worker.checkpoints.checkpoint import inspect
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.loading.components import Reading, load_component, trim
from qwen_worker.memory import placement
from qwen_worker.memory.machine import read_machine
from qwen_worker.model_settings import Precision
from qwen_worker.weights import assembly

COMPONENTS = ("transformer", "text_encoder", "vae")
INNER = ("qdata", "scale")  # what torchao's tensors consist of


def plan_for(folder, precision, **changes):
    return dataclasses.replace(placement.plan([as_model(inspect(folder), [])], read_machine(), precision), **changes)


def component(folder, name, plan, threads=8):
    value = json.loads((folder / "model_index.json").read_text())[name]
    model = load_component(inspect(folder), name, value, plan, Reading(threads))
    trim(model, name, plan)
    return model


def values(model):
    """Every tensor of the model by name, quantized ones taken apart."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts = {inner: getattr(tensor, inner) for inner in INNER if hasattr(tensor, inner)} or {"": tensor}
        if hasattr(tensor, "quant_state"):
            parts |= {"absmax": tensor.quant_state.absmax, "nested": tensor.quant_state.state2.absmax}
        facts = (type(tensor), tensor.dtype, tensor.shape, tensor.requires_grad)
        found[name] = facts, {part: (one.dtype, one.detach().contiguous()) for part, one in parts.items()}
    return found


def require_same(ours, theirs):
    ours, theirs = values(ours), values(theirs)
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name][0] == theirs[name][0], name
        for part, (dtype, tensor) in ours[name][1].items():
            other = theirs[name][1][part]
            assert dtype == other[0] and torch.equal(tensor.view(torch.uint8), other[1].view(torch.uint8)), (name, part)


@pytest.mark.parametrize("kind", ["generate", "edit"])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("name", COMPONENTS)
def test_every_parameter_is_the_library_s(tiny, kind, precision, name):
    for table in (False, True):
        plan = plan_for(tiny / kind, precision, table=table)
        ours, theirs = (component(tiny / kind, name, plan, threads) for threads in (8, 0))
        require_same(ours, theirs)
        assert (ours.training, ours.dtype, ours.device) == (theirs.training, theirs.dtype, theirs.device)


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NF4])
@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_what_is_quantized_on_the_way_is_the_library_s(tiny, precision, name):
    plan = plan_for(tiny / "edit", precision, table=True, text_encoder="quantized")
    require_same(*(component(tiny / "edit", name, plan, threads) for threads in (8, 0)))


def test_the_2_1_models_load_by_our_reader_too(tmp_path):
    from ..support.random_21 import build

    build(tmp_path)
    plan = plan_for(tmp_path, Precision.BF16)
    for name in COMPONENTS:
        require_same(*(component(tmp_path, name, plan, threads) for threads in (8, 0)))


def test_what_a_plan_does_without_is_not_read(tiny, monkeypatch):
    read = []
    real = assembly.Target.reader
    monkeypatch.setattr(assembly.Target, "reader", lambda self, wanted: read.extend(wanted) or real(self, wanted))
    plan = plan_for(tiny / "generate", Precision.BF16, table=True)
    parts = inspect(tiny / "generate").parts
    for name, gone in (("transformer", ["modulation"]), ("text_encoder", ["lm_head", "vision"])):
        read.clear()
        component(tiny / "generate", name, plan)
        stored = inspect(tiny / "generate").parameters[name]
        assert sum(one.size for one in read) == 2 * (stored - sum(parts[part] for part in gone))


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny / "generate", tmp_path / "copy")


def rewritten(folder, name, change):
    """Change the component's tensors by `change(tensors)`."""
    (file,) = (folder / name).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("name", ["transformer", "vae"])
def test_a_missing_weight_is_refused_by_its_name(copy, name):
    gone = []
    rewritten(copy, name, lambda tensors: gone.append(min(key for key in tensors if "norm" in key)))
    rewritten(copy, name, lambda tensors: tensors.pop(gone[0]))
    with pytest.raises(LoadError) as caught:
        component(copy, name, plan_for(copy, Precision.BF16))
    assert caught.value.reason == f"{name}/ lacks 1 of its weights, {gone[0]} among them"


def test_a_weight_of_another_shape_is_refused_with_both(copy):
    rewritten(copy, "transformer", lambda tensors: tensors.update({"proj_out.bias": torch.zeros(7)}))
    with pytest.raises(LoadError) as caught:
        component(copy, "transformer", plan_for(copy, Precision.BF16))
    expected = "transformer/ has proj_out.bias in the shape 7 where its config asks for 64"
    assert caught.value.reason == expected


def scale_to_fp8(tensors):
    """As ComfyUI stores weights, each with a scale of its own."""
    for name in [key for key in tensors if key.endswith(".weight") and "transformer_blocks" in key]:
        scale = tensors[name].abs().max().float() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[name.removesuffix("weight") + "scale_weight"] = scale


@pytest.mark.parametrize("threads", [8, 0])
@pytest.mark.parametrize(
    ("component_name", "change", "name", "origin"),
    [
        ("transformer", scale_to_fp8, "transformer_blocks.0.attn.add_k_proj.scale_weight", "ComfyUI"),
        ("transformer", {"scaled_fp8": torch.zeros(2)}, "scaled_fp8", "ComfyUI"),
        ("transformer", {"transformer_blocks.0.attn.to_q.comfy_quant": torch.zeros(2)}, "comfy_quant", "ComfyUI"),
        ("transformer", {"transformer_blocks.0.attn.to_q.svd_up": torch.zeros(2, 2)}, "svd_up", "SDNQ"),
        ("transformer", {"transformer_blocks.6.attn.to_q.weight": torch.zeros(2, 2)}, "blocks.6.attn.to_q", ""),
        ("vae", {"decoder.conv_in.scale_weight": torch.zeros(())}, "decoder.conv_in.scale_weight", "ComfyUI"),
        ("text_encoder", {"model.layers.0.mlp.up_proj.scale_weight": torch.zeros(())}, "up_proj.scale_weight", "Comfy"),
    ],
)
def test_a_tensor_that_would_change_the_picture_is_refused_by_name(copy, threads, component_name, change, name, origin):
    rewritten(copy, component_name, change if callable(change) else lambda tensors: tensors.update(change))
    with pytest.raises(LoadError) as caught:
        component(copy, component_name, plan_for(copy, Precision.BF16), threads)
    found = caught.value.reason
    assert found.startswith(f"{component_name}/ holds ") and "tensors that its class does not know" in found
    assert name in found and origin in found and not caught.value.transient


@pytest.mark.parametrize(
    ("component_name", "name"),
    [("transformer", "pos_embed.pos_freqs"), ("text_encoder", "model.rotary_emb.inv_freq"), ("vae", "x.position_ids")],
)
def test_a_buffer_that_its_class_computes_itself_is_logged(copy, component_name, name, capsys):
    rewritten(copy, component_name, lambda tensors: tensors.update({name: torch.zeros(4)}))
    component(copy, component_name, plan_for(copy, Precision.BF16))
    assert "1 tensors are not needed" in capsys.readouterr().out or component_name == "text_encoder"


def test_a_modulation_weight_that_is_missing_is_refused_by_its_name(copy):
    from qwen_worker.weights import modulation_rows

    name = "transformer_blocks.3.txt_mod.1.bias"
    rewritten(copy, "transformer", lambda tensors: tensors.pop(name))
    transformer = component(copy, "transformer", plan_for(copy, Precision.BF16, table=True))
    with pytest.raises(LoadError, match=f"transformer/ lacks 1 of its weights, {name} among them"):
        modulation_rows.build(transformer, copy)


def test_a_text_encoder_that_lacks_a_weight_is_not_made_up(copy):
    rewritten(copy, "text_encoder", lambda tensors: tensors.pop(min(key for key in tensors if "norm" in key)))
    with pytest.raises(LoadError, match="text_encoder/ lacks 1 of its weights, "):
        component(copy, "text_encoder", plan_for(copy, Precision.BF16))


def test_what_was_read_into_host_memory_is_what_the_model_holds(tiny, monkeypatch):
    """A second copy would be pageable, or pinned once more when it is streamed."""
    taken, real = {}, assembly.WeightReader.pop

    def pop(self, name):
        taken[name] = real(self, name)
        return taken[name]

    monkeypatch.setattr(assembly.WeightReader, "pop", pop)
    plan = plan_for(tiny / "edit", Precision.BF16, table=True)
    for name in ("text_encoder", "transformer"):
        taken.clear()
        model = component(tiny / "edit", name, plan)
        held = {parameter.data_ptr() for parameter in model.parameters()}
        assert taken and held == {tensor.data_ptr() for tensor in taken.values()}


def test_names_are_sorted_by_their_numbers():
    names = ["layers.10.b", "layers.9.a", "embed", "layers.9.b"]
    assert sorted(names, key=assembly.natural_order) == ["embed", "layers.9.a", "layers.9.b", "layers.10.b"]


def test_models_are_made_without_memory_and_in_their_dtype():
    with assembly.make_empty(torch.bfloat16):
        layer = torch.nn.Linear(2, 2)
        assert layer.weight.device.type == "meta" and torch.zeros(1).dtype == layer.weight.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32 and torch.nn.Linear(2, 2).weight.device.type == "cpu"
