"""A transformer in one file by its header alone: what is read of it, and what is refused by a tensor's name."""

import json
import os
import re
import struct

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import save_file

from benchmarks.measure import community_files as files
from qwen_worker.checkpoints import single_file
from qwen_worker.checkpoints.architecture import require_weights, weight_shapes
from qwen_worker.errors import LoadError

CONFIG_20B = {"_class_name": "QwenImageTransformer2DModel"}  # the class's defaults are the released model's


@pytest.fixture(scope="module")
def weights(tiny):
    return files.weights_of(tiny / "generate")


@pytest.fixture
def config(tiny):
    return json.loads((tiny / "generate/transformer/config.json").read_text())


@pytest.fixture
def refusal_of(config):
    """refusal_of(file): the sentence by which it is refused, its numbers in commas or not."""

    def refusal(file):
        with pytest.raises(LoadError) as raised:
            found = single_file.read(file, file.name)
            shapes = {name: weight.shape for name, weight in found.weights.items()}
            require_weights(shapes, config | found.config, file.name)
        return raised.value.reason

    return refusal


# What is read


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda weights, file: files.write_plain(weights, file), "bf16"),
        (lambda weights, file: files.write_plain(weights, file, torch.float16, prefix=""), "fp16"),
        (lambda weights, file: files.write_plain(weights, file, torch.float8_e4m3fn), "fp8 (e4m3)"),
        (lambda weights, file: files.write_plain(weights, file, torch.float8_e5m2), "fp8 (e5m2)"),
        (lambda weights, file: files.write_scaled(weights, file), "fp8 (e4m3) with scales, bf16"),
        (lambda weights, file: files.write_scaled(weights, file, "weight_scale", True), "fp8 (e4m3) with scales, bf16"),
        (lambda weights, file: files.write_gguf(weights, file, "Q8_0"), "GGUF Q8_0, BF16, F32"),
        (lambda weights, file: files.write_gguf(weights, file, "Q4_0"), "GGUF Q4_0, BF16, F32"),
    ],
)
def test_a_file_has_the_weights_of_the_base_s_transformer(weights, config, tmp_path, write, kind):
    file = write(weights, tmp_path / "file")
    found = single_file.read(file, file.name)
    shapes = {name: weight.shape for name, weight in found.weights.items()}
    require_weights(shapes, config, file.name)
    assert shapes == {name: tuple(weight.shape) for name, weight in weights.items()}
    assert found.kind == kind and found.config == {"num_layers": 5}
    starts = [weight.tensors[0].start for weight in found.weights.values()]
    assert starts == sorted(starts)  # the order in which a disk gives them


def test_of_a_checkpoint_with_a_text_encoder_the_transformer_is_read(weights, config, tmp_path):
    stored = {f"{files.PREFIX}{name}": weight for name, weight in weights.items()}
    others = {"text_encoders.qwen25_7b.model.norm.weight": torch.ones(3), "vae.decoder.conv1.weight": torch.ones(2)}
    save_file(stored | others, tmp_path / "all_in_one.safetensors")
    found = single_file.read(tmp_path / "all_in_one.safetensors", "all_in_one")
    assert found.weights.keys() == weights.keys()


def test_fewer_layers_and_edit_2511_s_mark_go_into_the_config(weights, tmp_path):
    fewer = {name: weight for name, weight in weights.items() if ".4." not in name}
    mark = {"__index_timestep_zero__": torch.zeros(0)}
    file = files.write_plain(fewer, tmp_path / "pruned.safetensors", **mark)
    assert single_file.read(file, file.name).config == {"num_layers": 4, "zero_cond_t": True}


@pytest.mark.parametrize("layers", [{}, {"num_layers": 3, "use_additional_t_cond": True, "out_channels": None}])
def test_the_architecture_s_table_is_that_of_diffusers_class(layers):
    from diffusers import QwenImageTransformer2DModel

    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**layers)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert weight_shapes(CONFIG_20B | dict(model.config)) == expected


def test_2_1_s_table_is_that_of_diffusers_class_and_its_fused_layers_are_split(tmp_path):
    from diffusers import QwenImage21Transformer2DModel

    with torch.device("meta"):
        model = QwenImage21Transformer2DModel(num_layers=2, num_attention_heads=2, context_in_dim=70)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = {"_class_name": "QwenImage21Transformer2DModel", **model.config}
    assert weight_shapes(config) == expected
    numbers = {name: torch.randn(shape).bfloat16() for name, shape in expected.items()}
    fused = dict(numbers)
    for layer in ("transformer_blocks.0", "transformer_blocks.1"):
        halves = [fused.pop(f"{layer}.img_mlp.{part}.weight") for part in ("gate_layer", "proj")]
        fused[f"{layer}.img_mlp.gate_up.weight"] = torch.cat(halves)
    file = files.write_plain(fused, tmp_path / "2.1.safetensors")
    found = single_file.read(file, file.name).weights
    require_weights({name: weight.shape for name, weight in found.items()}, config, file.name)
    for name in ("gate_layer", "proj"):
        (stored,) = found[f"transformer_blocks.1.img_mlp.{name}.weight"].tensors
        content = file.read_bytes()[stored.start : stored.start + stored.size]
        expected_bytes = numbers[f"transformer_blocks.1.img_mlp.{name}.weight"].view(torch.uint8).numpy().tobytes()
        assert content == expected_bytes


# At full size: headers alone, in sparse files


def sparse_safetensors(file, prefix=files.PREFIX, scaled=True, layers=60):
    """The header of the 20B transformer in fp8, and no byte of weights."""
    header, place = {}, 0
    for name, shape in weight_shapes(CONFIG_20B | {"num_layers": layers}).items():
        is_matrix = len(shape) == 2
        count = shape[0] * (shape[1] if is_matrix else 1)
        size = count * (1 if is_matrix else 2)
        dtype = "F8_E4M3" if is_matrix else "BF16"
        header[prefix + name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
        if is_matrix and scaled:
            scale = {"dtype": "F32", "shape": [], "data_offsets": [place, place + 4]}
            header[f"{prefix}{name.removesuffix('.weight')}.scale_weight"] = scale
            place += 4
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + place)
    return file


def sparse_gguf(file, encoding="Q4_K", layers=60):
    """The header of the 20B transformer as GGUF, and no byte of weights."""
    kind = GGMLQuantizationType[encoding]
    block, size = quants.GGML_QUANT_SIZES[kind]
    writer = GGUFWriter(file, "qwen_image")
    for name, shape in weight_shapes(CONFIG_20B | {"num_layers": layers}).items():
        is_packed = len(shape) == 2 and shape[1] % block == 0
        own = kind if is_packed else GGMLQuantizationType.BF16
        columns = shape[-1] // block * size if is_packed else shape[-1] * 2
        stored, numpy_type = (*shape[:-1], columns), __import__("numpy").dtype("uint8")
        writer.add_tensor_info(name, stored, numpy_type, columns * (shape[0] if len(shape) == 2 else 1), own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    start = writer.fout[0].tell()
    writer.close()
    data = sum(-(-tensor.nbytes // 32) * 32 for tensor in writer.tensors[0].values())
    os.truncate(file, -(-start // 32) * 32 + data)
    return file


@pytest.mark.parametrize(
    ("write", "gigabytes", "kind"),
    [(sparse_safetensors, 20.4, "fp8 (e4m3) with scales, bf16"), (sparse_gguf, 11.5, "GGUF Q4_K, BF16")],
)
def test_the_20b_transformer_is_planned_from_the_header_of_a_sparse_file(tmp_path, write, gigabytes, kind, tiny):
    from qwen_worker.checkpoints import composed, transformer_source
    from qwen_worker.checkpoints.checkpoint import released
    from qwen_worker.checkpoints.classes import PARTS_20B, SIZE_20B
    from qwen_worker.checkpoints.sharing import as_model
    from qwen_worker.memory import placement
    from qwen_worker.memory.machine import Machine
    from qwen_worker.memory.nvml import Gpu

    file = write(tmp_path / f"qwen-image-20b{'.gguf' if write is sparse_gguf else '.safetensors'}")
    assert file.stat().st_size == pytest.approx(gigabytes * 1e9, rel=0.02)
    assert file.stat().st_blocks * 512 < 2_000_000
    source = transformer_source.locate(str(file), (), tmp_path)
    stored = composed.read_stored(source, CONFIG_20B)
    assert stored.parameters == SIZE_20B["transformer"] and stored.kind == kind
    assert stored.parts == {part: PARTS_20B[part] for part in ("modulation", "modulation_outputs", "matrices")}
    checkpoint = composed.with_transformer(released("Qwen/Qwen-Image"), stored, source)
    gpu = Gpu("RTX 4090", (8, 9), 25_000_000_000, 24_500_000_000)
    machine = Machine(gpu, 128_000_000_000, 128_000_000_000)
    own, plain = (placement.plan([as_model(one, [])], machine) for one in (checkpoint, released("Qwen/Qwen-Image")))
    assert (own.precision, own.table, own.weight_bytes) == (plain.precision, plain.table, plain.weight_bytes)


def test_a_pruned_one_is_planned_with_the_layers_that_it_has(tmp_path):
    from qwen_worker.checkpoints import composed, transformer_source
    from qwen_worker.checkpoints.classes import PARTS_20B

    file = sparse_gguf(tmp_path / "12b.gguf", layers=40)
    stored = composed.read_stored(transformer_source.locate(str(file), (), tmp_path), CONFIG_20B)
    assert stored.config["num_layers"] == 40
    assert stored.parts["matrices"] == PARTS_20B["matrices"] * 40 // 60


# What is refused


def test_a_gguf_of_flux_is_refused_by_a_tensor_and_its_architecture(tmp_path, refusal_of):
    flux = {
        "double_blocks.0.img_attn.qkv.weight": torch.randn(96, 32), "img_in.weight": torch.randn(32, 64),
        "final_layer.linear.weight": torch.randn(64, 32),
    }  # fmt: skip
    reason = refusal_of(files.write_gguf(flux, tmp_path / "flux1-dev-Q4_0.gguf", "Q4_0", "flux"))
    assert "no transformer of Qwen-Image" in reason and "architecture flux" in reason
    assert "double_blocks.0.img_attn.qkv.weight" in reason


@pytest.mark.parametrize("left", [0.9, 0.5, 0.01, 0.0005])
def test_a_truncated_gguf_is_refused(weights, tmp_path, refusal_of, left):
    file = files.write_gguf(weights, tmp_path / "cut.gguf", "Q4_0")
    os.truncate(file, int(file.stat().st_size * left))
    assert "cut.gguf is corrupt or cut short: " in refusal_of(file)


def test_a_truncated_safetensors_file_is_refused(weights, tmp_path, refusal_of):
    file = files.write_plain(weights, tmp_path / "cut.safetensors")
    os.truncate(file, file.stat().st_size - 1)
    assert refusal_of(file).startswith("cut.safetensors is corrupt: its header describes")


def test_a_gguf_with_an_array_without_end_is_refused_at_once(tmp_path, refusal_of):
    """The package's own reader goes through as many values as the header says, past the file's end."""
    key = b"tokenizer.ggml.tokens"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    header += struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 0, 2**62)
    (tmp_path / "endless.gguf").write_bytes(header + bytes(100))
    assert "endless.gguf is corrupt or cut short" in refusal_of(tmp_path / "endless.gguf")


def test_a_gguf_type_that_is_not_read_is_refused_by_the_tensor_s_name(weights, tmp_path, refusal_of):
    import numpy

    writer = GGUFWriter(tmp_path / "tq.gguf", "qwen_image")
    for name, weight in weights.items():
        numbers = weight.float().numpy()
        packed = name == "transformer_blocks.1.img_mlp.net.2.weight"
        kind = GGMLQuantizationType.TQ2_0 if packed else GGMLQuantizationType.F32
        writer.add_tensor(
            name, quants.quantize(numbers, kind) if packed else numpy.ascontiguousarray(numbers), None, kind
        )
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    reason = refusal_of(tmp_path / "tq.gguf")
    assert "transformer_blocks.1.img_mlp.net.2.weight in the type TQ2_0, which is not read" in reason


LAYER = "transformer_blocks.1.attn.to_q"


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (torch.ones(3), f"{LAYER}.scale_weight as F32 in the shape 3, not one number or 128 of them"),
        (torch.ones(1, 128), f"{LAYER}.scale_weight as F32 in the shape 1x128, not one number or 128"),
        (torch.ones(128, dtype=torch.uint8), f"{LAYER}.scale_weight as U8 in the shape 128, not"),
        (None, f"{LAYER}.weight in fp8 without a scale, where 69 others have one"),
    ],
)
def test_scales_of_the_wrong_shape_are_refused_by_name(weights, tmp_path, refusal_of, scale, words):
    from safetensors.torch import load_file

    file = files.write_scaled(weights, tmp_path / "scaled.safetensors", prefix="")
    stored = load_file(file)
    del stored[f"{LAYER}.scale_weight"]
    save_file(stored | ({f"{LAYER}.scale_weight": scale} if scale is not None else {}), file)
    assert words in refusal_of(file)


def test_a_scale_that_no_weight_has_is_refused(weights, tmp_path, refusal_of):
    file = files.write_plain(
        weights, tmp_path / "a.safetensors", **{"transformer_blocks.0.oops.weight_scale": torch.ones(1)}
    )
    assert "transformer_blocks.0.oops.weight_scale, and no transformer_blocks.0.oops.weight" in refusal_of(file)
    file = files.write_plain(weights, tmp_path / "b.safetensors", **{f"{LAYER}.weight_scale": torch.ones(1)})
    assert f"{LAYER}.weight is BF16 and needs no scale" in refusal_of(file)


def test_other_formats_of_comfyui_are_refused_by_name(weights, tmp_path, refusal_of):
    text = torch.frombuffer(bytearray(b'{"format": "mxfp8"}'), dtype=torch.uint8)
    file = files.write_plain(
        weights, tmp_path / "mx.safetensors", torch.float8_e4m3fn, **{f"{LAYER}.comfy_quant": text}
    )
    assert f"{LAYER}.weight by ComfyUI's mxfp8, which is not read" in refusal_of(file)
    layers = {f"{files.PREFIX}{LAYER}": {"format": "nvfp4"}}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    file = files.write_plain(weights, tmp_path / "nv.safetensors", metadata=metadata)
    assert f"{LAYER}.weight by ComfyUI's nvfp4" in refusal_of(file)
    integers = dict(weights) | {f"{LAYER}.weight": torch.zeros(128, 128, dtype=torch.int8)}
    save_file(integers, tmp_path / "int8.safetensors")
    assert f"{LAYER}.weight as I8, which is not read" in refusal_of(tmp_path / "int8.safetensors")
    for damage in ("[]", "{", '{"layers": 3}', '{"layers": {"a": {}}}'):
        file = files.write_plain(weights, tmp_path / "c.safetensors", metadata={"_quantization_metadata": damage})
        assert "_quantization_metadata of its header cannot be read" in refusal_of(file)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer_blocks.0.attn.to_q.lora_A.weight", "is a LoRA: name it in QWEN_LORAS"),
        ("lora_unet_transformer_blocks_0_attn_to_q.alpha", "is a LoRA"),
        ("transformer_blocks.0.attn.to_qkv.wscales", "Nunchaku"),
        ("transformer_blocks.0.attn.to_q.weight.absmax", "bitsandbytes"),
        ("time_text_embed.guidance_embedder.linear_1.weight", "has no place for"),
        ("transformer_blocks.0.attn.to_q.svd_up", "has no place for"),
    ],
)
def test_what_is_no_transformer_is_refused_by_what_it_is(weights, tmp_path, refusal_of, name, words):
    file = files.write_plain(weights, tmp_path / "other.safetensors", **{name: torch.ones(1)})
    reason = refusal_of(file)
    assert name in reason and words in reason


def test_a_file_that_lacks_weights_or_has_other_shapes_is_refused(weights, tmp_path, refusal_of):
    fewer = {name: weight for name, weight in weights.items() if name != f"{LAYER}.bias"}
    assert f"lacks {LAYER}.bias, which" in refusal_of(files.write_plain(fewer, tmp_path / "a.safetensors"))
    wider = weights | {"txt_in.weight": torch.zeros(128, 64)}
    reason = refusal_of(files.write_plain(wider, tmp_path / "b.safetensors"))
    assert "txt_in.weight in the shape 128x64, where the base checkpoint's config asks for 128x128" in reason


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"\x08\0\0\0\0\0\0\0nonsense", b"PK\x03\x04" + bytes(64)])
def test_what_is_no_such_file_is_refused(tmp_path, refusal_of, content):
    (tmp_path / "a.gguf").write_bytes(content)
    assert re.match(r"a\.gguf is corrupt|a\.gguf has a header", refusal_of(tmp_path / "a.gguf"))


def test_a_layer_s_number_beyond_any_model_s_is_refused_at_once(weights, tmp_path, refusal_of):
    far = {"transformer_blocks.900000.attn.to_q.weight": torch.zeros(128, 128)}
    reason = refusal_of(files.write_plain(weights, tmp_path / "far.safetensors", **far))
    assert reason == "a transformer with a num_layers of 900001 is none that can be loaded"
