"""A LoRA's file by its header: every trainer's names, and what is refused without being read any further."""

import json
import os
import pickle
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from qwen_worker.errors import InvalidInput, JobError
from qwen_worker.lora import file as lora_file
from qwen_worker.lora import names as lora_names
from qwen_worker.lora.architectures import BLOCK_LAYERS, OTHER_LAYERS
from qwen_worker.lora.file import LoraUse, require_layers
from qwen_worker.lora.names import UnusableLora
from qwen_worker.lora.tensor_file import RECENT_SECONDS, require_start

from ..support.lora_files import FORMATS, write
from ..support.patience import little_work

RANDOM = torch.Generator().manual_seed(0)
EVERY = [f"transformer_blocks.{block}.{layer}" for block in (0, 9, 59) for layer in BLOCK_LAYERS] + list(OTHER_LAYERS)
Q = "transformer_blocks.0.attn.to_q"


def weights(layers=EVERY, rank=2, size=8):
    return {layer: (torch.ones(rank, size), torch.ones(size, rank)) for layer in layers}


def open_file(path, key="key"):
    return lora_file.open_lora(path, key, "loras[0]")


def written(path, header, data=b""):
    """A safetensors file of this header, a text or an object."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refusal(path):
    with pytest.raises(InvalidInput) as caught:
        open_file(path)
    return caught.value.sentence


@pytest.mark.parametrize("form", FORMATS)
def test_every_trainer_s_names_are_understood(tmp_path, form):
    found = open_file(write(tmp_path / "a.safetensors", weights(), form, alpha=4))
    assert set(found.layers) == set(EVERY)
    scaling = {layer.scaling for layer in found.layers.values()}
    assert scaling == ({2.0} if FORMATS[form][4] else {1.0})
    assert found.parameters == len(EVERY) * 2 * 16
    assert all((layer.rank, layer.inputs, layer.outputs) == (2, 8, 8) for layer in found.layers.values())


@pytest.mark.parametrize(
    "form", ["lightning", "diffusers", "diffsynth", "ai-toolkit, ComfyUI", "ComfyUI", "kohya, musubi"]
)
def test_the_names_are_read_as_diffusers_reads_them(tmp_path, form):
    """Where it does: the other layouts it drops without a word, or strips of one prefix too few."""
    from diffusers import QwenImagePipeline

    path = write(tmp_path / "a.safetensors", weights(), form, alpha=2)
    theirs = QwenImagePipeline.lora_state_dict(str(path.parent), weight_name=path.name)
    known = {name.removeprefix("transformer.").partition(".lora_A")[0] for name in theirs if ".lora_A" in name}
    assert known == set(open_file(path).layers)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "must be a safetensors file, and does not begin as one"),
        (b"\x08", "must be a safetensors file"),
        (pickle.dumps({"a": 1}), "must be a safetensors file"),
        (b"PK\x03\x04" + bytes(40), "must be a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{", "a header of at most 10,000,000 bytes, not 9,223,372,036,854,775,808"),
        ((20).to_bytes(8, "little") + b"{", "is corrupt"),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensors"),
        ((2).to_bytes(8, "little") + b"{]", "is corrupt"),
        ((8).to_bytes(8, "little") + b'{"a":[]}', "is corrupt"),
        (save({"a": torch.ones(2)})[:-1], "is corrupt: its header describes"),
        (save({"a": torch.ones(2)}) + b"x", "is corrupt: its header describes"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, data, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert words in refusal(path)


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("[" * 100_000, "does not begin as one"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "its safetensors header cannot be read"),
        ({"a": entry(0, 8) | {"shape": [float("inf")]}}, "its safetensors header cannot be read"),
        ({"a": entry(0, 8) | {"shape": [1e400]}}, "its safetensors header cannot be read"),
        ({"a": entry(0, 8) | {"shape": "12"}}, "its safetensors header cannot be read"),
        ({"a": entry(0, 8, (-2, -1))}, "its safetensors header cannot be read"),
        ({"a": entry(0, 8, (True, 2))}, "its safetensors header cannot be read"),
        ({"a": entry(-8, 8)}, "its safetensors header cannot be read"),
        ({"a": entry(8, 0)}, "its safetensors header cannot be read"),
        ({"a": {"dtype": "F32"}}, "its safetensors header cannot be read"),
        ({"a": entry(0, 8, (3,))}, "a tensor is given more or less room than it takes"),
        ({"a": entry(0, 8, (10**30,))}, "a shape that no file of its size holds"),
        ({"a": entry(0, 8, (1,) * 8 + (2,))}, "a shape that no file of its size holds"),
        ({"a": entry(0, 8, (999_999_999,) * 80_000)}, "a shape that no file of its size holds"),
        ({"a." * 250 + "b": entry(0, 8)}, "a tensor with a name of 501 characters"),
        ({"a": entry(0, 8, (2,)), "b": entry(0, 8, (2,))}, "its tensors overlap, or leave gaps"),
        ({"a": entry(4, 8)}, "its tensors overlap, or leave gaps"),
        ({f"{Q}.lora_A.weight": entry(0, 4, (1, 1), ["F32"]), f"{Q}.lora_B.weight": entry(4, 8, (1, 1))},
         "; F64, F32, F16, BF16, F8_E4M3, "),
    ],
)  # fmt: skip
def test_a_header_made_to_mislead_is_refused(tmp_path, header, words):
    assert words in refusal(written(tmp_path / "a.safetensors", header, bytes(8)))


def test_a_pickle_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("was unpickled",))

    path = tmp_path / "a.safetensors"
    torch.save({"transformer_blocks.0.attn.to_q.lora_A.weight": Bomb()}, path)
    assert "does not begin as one" in refusal(path)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "does not begin as one" in refusal(path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{Q}.lora_A.weight": (2, 8)}, f"lacks the up matrix of {Q}"),
        ({f"{Q}.lora_up.weight": (8, 2)}, f"lacks the down matrix of {Q}"),
        ({f"{Q}.alpha": (1,)}, f"lacks the down matrix of {Q}"),
        ({f"{Q}.lora_A.weight": (2, 8), f"{Q}.lora_B.weight": (8, 3)}, "has matrices of 2x8 and 8x3"),
        ({f"{Q}.lora_A.weight": (2, 8, 1), f"{Q}.lora_B.weight": (8, 2)}, "has matrices of 2x8x1 and 8x2"),
        ({f"{Q}.lora_A.weight": (0, 8), f"{Q}.lora_B.weight": (8, 0)}, "has matrices of 0x8 and 8x0"),
        ({f"{Q}.lora_A.weight": (8,), f"{Q}.lora_B.weight": ()}, "has matrices of 8 and a number"),
        ({f"{Q}.lora_A.weight": (2, 8), f"{Q}.lora_B.weight": (8, 2), f"{Q}.alpha": (2,)}, "an alpha is one number"),
        ({f"{Q}.lora_A.weight": (2, 8), f"transformer.{Q}.lora_A.weight": (2, 8)}, f"has two tensors for {Q}"),
        ({f"{Q}.lora_A.a.weight": (2, 8), f"{Q}.lora_A.b.weight": (2, 8)}, f"has two tensors for {Q}"),
        ({f"{Q}.weight": (8, 8)}, f"holds {Q}.weight, which belongs to no LoRA"),
        ({f"{Q}.dora_scale": (8,)}, "is a DoRA"),
        ({f"transformer.{Q}.lora_magnitude_vector": (8,)}, "is a DoRA"),
        ({f"{Q}.lokr_w1": (2, 2), f"{Q}.lokr_t2": (2, 2)}, "is a LoKr with a middle matrix"),
        ({f"{Q}.hada_t1": (2, 2)}, "is a LoHa with a middle matrix"),
        ({f"{Q}.lokr_w1": (2, 2)}, f"lacks the lokr_w2 matrix of {Q}"),
        ({f"{Q}.lokr_w1": (2, 2), f"{Q}.lokr_w2_a": (2, 2)}, f"lacks the lokr_w2_b matrix of {Q}"),
        ({f"{Q}.lokr_w1": (2, 2), f"{Q}.lora_A.weight": (2, 2)}, "has down and lokr_w1 for"),
        ({f"{Q}.hada_w1_a": (8, 2), f"{Q}.hada_w1_b": (2, 8)}, f"lacks the hada_w2_a matrix of {Q}"),
        (
            {f"{Q}.hada_w1_a": (8, 2), f"{Q}.hada_w1_b": (2, 8), f"{Q}.hada_w2_a": (8, 2), f"{Q}.hada_w2_b": (2, 4)},
            f"has matrices of 8x2 and 2x8 and 8x2 and 2x4 for {Q}, which do not make a product",
        ),
        (
            {f"{Q}.lokr_w1": (8, 8), f"{Q}.lokr_w2_a": (1, 900), f"{Q}.lokr_w2_b": (900, 1)},
            f"makes lokr_w2 of {Q}, which is 1x1, of factors of rank 900",
        ),
        ({f"{Q}.lora_B.bias": (8,)}, "is a LoRA with biases"),
        ({f"diffusion_model.{Q}.diff": (8, 8)}, "is a LoRA with whole weights"),
        ({"text_encoder.layers.0.q_proj.lora_A.weight": (2, 8)}, "has a part for the text encoder only"),
        ({"lora_te_layers_0_q_proj.lora_down.weight": (2, 8)}, "has a part for the text encoder only"),
        ({"a\x1b[31m\n.x": (1,)}, r"holds 'a\x1b[31m\n.x', which belongs to no LoRA"),
    ],
)
def test_what_is_no_lora_is_refused_by_name(tmp_path, tensors, words):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    assert words in refusal(path)


def test_a_dora_is_told_by_its_metadata_too(tmp_path):
    path = write(tmp_path / "a.safetensors", weights(), metadata={"transformer.use_dora": True})
    assert "is a DoRA by lora_adapter_metadata" in refusal(path)


@pytest.mark.parametrize(
    "metadata",
    ["[]", "{", '{"transformer.lora_alpha": "x"}', '{"transformer.alpha_pattern": [1]}', "3", "[" * 9999,
     '{"transformer.lora_alpha": 1' + "0" * 400 + "}"],
)  # fmt: skip
def test_metadata_that_make_no_sense_are_refused(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    tensors = {f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, path, metadata={"lora_adapter_metadata": metadata})
    assert "has lora_adapter_metadata that cannot be read" in refusal(path)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0, 1e30])
def test_an_alpha_that_no_picture_is_meant_with_is_refused_wherever_it_stands(tmp_path, alpha):
    words = f"has an alpha of {alpha:g} for img_in"
    assert words in refusal(write(tmp_path / "a.safetensors", weights(), "lightning", alpha=alpha))
    metadata = {"transformer.lora_alpha": alpha}
    path = write(tmp_path / "b.safetensors", weights(), metadata=metadata)
    assert f"{words} in lora_adapter_metadata" in refusal(path)
    tensors = {f"img_in.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / "c.safetensors", metadata={"network_alpha": str(alpha)})
    assert f"{words} in network_alpha of its metadata" in refusal(tmp_path / "c.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
    save_file(tensors, tmp_path / "d.safetensors")
    with pytest.raises(InvalidInput) as caught:
        lora_file.open_lora(tmp_path / "d.safetensors", "key", "loras[0]", tmp_path / "adapter_config.json")
    assert f"{words} in adapter_config.json" in caught.value.sentence


def test_whole_numbers_are_no_lora(tmp_path):
    path = write(tmp_path / "a.safetensors", weights(), dtype=torch.int8)
    assert "as I8; F64, F32, F16, BF16, F8_E4M3, " in refusal(path)


def configured(folder, text, rank=4):
    """A LoRA of peft's with this configuration beside it."""
    tensors = {f"{Q}.lora_A.weight": torch.ones(rank, 8), f"{Q}.lora_B.weight": torch.ones(8, rank)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(text)
    return lora_file.open_lora(folder / "adapter_model.safetensors", None, "loras[0]", folder / "adapter_config.json")


def test_the_key_of_a_file_is_its_configuration_s_too(tmp_path):
    """Layers that are kept for a LoRA have its scaling in them."""
    first, second = (configured(tmp_path, f'{{"lora_alpha": {alpha}}}') for alpha in (8, 16))
    assert (first.scalings, second.scalings) == ((2.0, 2.0), (4.0, 4.0)) and first.key != second.key
    assert configured(tmp_path, '{"lora_alpha": 16}').key == second.key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "has adapter_config.json that cannot be read: it must be a JSON object"),
        ("{", "has adapter_config.json that cannot be read: it must be a JSON object"),
        ("[" * 100_000, "has adapter_config.json that cannot be read: it must be a JSON object"),
        ('{"lora_alpha": "16"}', "has adapter_config.json that cannot be read: lora_alpha must be a number"),
        ('{"lora_alpha": true}', "has adapter_config.json that cannot be read: lora_alpha must be a number"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "lora_alpha is too large a number"),
        ('{"r": [4]}', "has adapter_config.json that cannot be read: r must be a number"),
        (
            '{"alpha_pattern": [4]}',
            "has adapter_config.json that cannot be read: alpha_pattern must be numbers by layer",
        ),
        (
            '{"alpha_pattern": {"to_q": "4"}}',
            "adapter_config.json, alpha_pattern that cannot be read: to_q must be a number",
        ),
        ('{"alpha_pattern": {"(a+)+b": 4}}', "alpha_pattern names (a+)+b, which is no name of a layer"),
        ('{"r": 8, "lora_alpha": 16}', f"says a rank of 8 for {Q} in adapter_config.json, and its matrices have 4"),
        ('{"r": 4, "rank_pattern": {"to_q": 2}, "lora_alpha": 1}', f"says a rank of 2 for {Q} in adapter_config.json"),
        ('{"use_dora": true}', "is a DoRA by adapter_config.json"),
        ('{"lora_alpha": 16, "target_modules": ["' + "x" * 1_000_000 + '"]}', "of more than 1 MB"),
    ],
    ids=range(14),
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path, text, words):
    with pytest.raises(InvalidInput) as caught:
        configured(tmp_path, text)
    assert caught.value.sentence.startswith("loras[0] ") and words in caught.value.sentence


def test_a_configuration_of_very_many_patterns_is_refused_in_a_moment(tmp_path):
    """Also in a file's own metadata, where a header has room for half a million."""
    pattern = {f"a.{number}": number for number in range(400_000)}
    words = "has {} with {} layers in alpha_pattern; at most 10,000 are read"
    with little_work(10):
        with pytest.raises(InvalidInput) as caught:
            configured(tmp_path, json.dumps({"alpha_pattern": dict(list(pattern.items())[:40_000])}))
        assert words.format("adapter_config.json", "40,000") in caught.value.sentence
        path = write(tmp_path / "b.safetensors", weights([Q]), metadata={"transformer.alpha_pattern": pattern})
        assert words.format("lora_adapter_metadata", "400,000") in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        ({"lora_alpha": "Dynamic"}, "has lora_alpha 'Dynamic' in its metadata, which is no number and was not used"),
        ({"lora_alpha": "16", "rank": "32"}, "has lora_alpha 16 for a rank of 32 in its metadata, and no matrices of"),
        ({"lora_alpha": "2", "rank": "None"}, ""),
    ],
)
def test_plain_metadata_that_cannot_be_used_are_told(tmp_path, metadata, warning):
    path = tmp_path / "a.safetensors"
    save_file({f"{Q}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, path, metadata=metadata)
    (found,) = open_file(path).warnings or ("",)
    assert found.startswith(warning) and bool(found) is bool(warning) and open_file(path).scalings == (1.0, 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "transformer._orig_mod.transformer_blocks.0.attn.to_q",
        "base_model.model._orig_mod.transformer_blocks.0._orig_mod.attn.to_q",
        "module._fsdp_wrapped_module.transformer_blocks.0._checkpoint_wrapped_module.attn.to_q",
        "model.diffusion_model.transformer_blocks.0.attn.to_q",
        "pipe.dit.transformer_blocks.0.attn.to_q",
        "lycoris_transformer_blocks_0_attn_to_q",
        "lora_unet__orig_mod_transformer_blocks_0__orig_mod_attn_to_q",
    ],
)
@pytest.mark.parametrize("adapter", ["", ".default", ".my-style", ".2", ".style_v2-1"])
def test_prefixes_of_wrapped_modules_and_adapters_names_are_understood(name, adapter):
    layers, _ = lora_names.group_by_layer([f"{name}.lora_A{adapter}.weight", f"{name}.lora_B{adapter}.weight"])
    assert set(layers) == {Q}


def test_a_part_for_the_text_encoder_is_left_out_and_told(tmp_path):
    path = write(tmp_path / "a.safetensors", weights([Q]))
    tensors = {name: torch.ones(2, 2) for name in ("text_encoder.a.lora_A.weight", "lora_te1_b.lora_mid.weight")}
    with safe_open(path, "pt") as file:
        save_file(tensors | {name: file.get_tensor(name) for name in file.keys()}, tmp_path / "b.safetensors")  # noqa: SIM118
    found = open_file(tmp_path / "b.safetensors")
    assert found.warnings == ("has a part for the text encoder (2 tensors), which was not applied",)
    assert set(found.layers) == {Q} and not open_file(path).warnings


def test_a_lora_for_another_model_is_refused_by_its_layers(tmp_path):
    there = {layer: (8, 8) for layer in EVERY if ".9." not in layer}
    there[Q] = (16, 16)
    use = LoraUse(open_file(write(tmp_path / "a.safetensors", weights())), 1.0, "loras[2]")
    with pytest.raises(InvalidInput) as caught:
        require_layers(use, there, "Qwen/Qwen-Image")
    assert caught.value.sentence == (
        "loras[2] is not made for Qwen/Qwen-Image; 15 of 48 layers do not match: transformer_blocks.0.attn.to_q is "
        "16x16 there and 8x8 in the LoRA; transformer_blocks.9.attn.add_k_proj is none of its layers; "
        "transformer_blocks.9.attn.add_q_proj is none of its layers; and 12 more"
    )


def test_a_file_is_read_after_it_is_deleted(tmp_path):
    """Another job's or worker's eviction may come between a LoRA's opening and its use."""
    path = write(tmp_path / "a.safetensors", weights())
    found = open_file(path)
    path.unlink()
    assert torch.equal(found.tensors.read_tensor(found.layers[Q].names["down"]), torch.ones(2, 8))


@pytest.mark.parametrize("bits", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_read_as_safetensors_reads_them(tmp_path, bits):
    random = {layer: (torch.randn(2, 8), torch.randn(8, 2)) for layer in EVERY}
    path = write(tmp_path / "a.safetensors", random, "lightning", dtype=bits)
    with safe_open(path, "pt") as theirs:
        ours = open_file(path).tensors
        assert set(ours.shapes) == set(theirs.keys())
        assert all(torch.equal(ours.read_tensor(name), theirs.get_tensor(name)) for name in theirs.keys())  # noqa: SIM118


def test_equal_keys_are_equal_contents(tmp_path):
    """Also of files that are written anew within a tick of the clock, in place or not, of the same length."""
    path = tmp_path / "a.safetensors"
    write(path, weights())
    key = open_file(path, None).key
    assert open_file(path, None).key == key
    data = path.read_bytes()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=times)
    assert open_file(path, None).key != key
    path.write_bytes(data)
    assert open_file(path, None).key == key


def test_a_file_that_has_long_been_there_is_not_read_for_its_key(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", weights())
    file = open_file(path).tensors
    later = time.time_ns() + (RECENT_SECONDS + 1) * 10**9
    monkeypatch.setattr("qwen_worker.lora.tensor_file.time.time_ns", lambda: later)
    monkeypatch.setattr("qwen_worker.lora.tensor_file.hashlib.file_digest", lambda *_: pytest.fail("was read"))
    assert file.identity() == open_file(path).tensors.identity()


def test_a_file_cut_short_in_place_is_an_error_and_not_the_end_of_the_process(tmp_path):
    """Mapped, it would be a SIGBUS."""
    path = write(tmp_path / "a.safetensors", weights(size=4096))
    found = open_file(path, None)
    assert not found.is_changed()
    with path.open("r+b") as stream:
        stream.truncate(20_000)
    assert found.is_changed()
    with pytest.raises(JobError) as caught:
        found.tensors.read_tensor(found.layers[EVERY[-1]].names["up"])
    assert str(caught.value) == "lora_fetch_failed: loras[0] cannot be read on the worker's disk"


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(JobError) as caught:
        open_file(tmp_path / "gone.safetensors")
    assert str(caught.value) == "lora_fetch_failed: loras[0] cannot be read on the worker's disk"


def test_no_descriptor_is_left_open(tmp_path):
    path = write(tmp_path / "a.safetensors", weights())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_file(path)
    assert len(os.listdir("/proc/self/fd")) == before


names = st.one_of(
    st.text(max_size=40),
    st.sampled_from(EVERY).flatmap(
        lambda layer: st.tuples(
            st.sampled_from(
                ["", "transformer.", "lora_unet_", "lycoris_", "_orig_mod.", "lora_te_", "base_model.model."]
            ),
            st.sampled_from(
                [
                    ".lora_A.weight",
                    ".lora_up.weight",
                    ".alpha",
                    ".lora_B.x.weight",
                    ".bias",
                    "",
                    ".lokr_w1",
                    ".lokr_w2",
                    ".lokr_w2_a",
                    ".lokr_w2_b",
                    ".hada_w1_a",
                ]
            ),
        ).map(lambda parts: f"{parts[0]}{layer}{parts[1]}")
    ),
)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(names, st.lists(st.integers(0, 3), max_size=4), max_size=6), st.binary(max_size=30), st.booleans()
)
def test_any_header_is_a_lora_or_refused(tmp_path, shapes, tail, valid):
    """Headers of every kind, true to the file's length or not."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    body = bytes(end) if valid else tail
    path = tmp_path / "any.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    try:
        assert open_file(path).layers
    except InvalidInput as error:
        assert error.sentence.startswith("loras[0]") and str(tmp_path) not in error.sentence


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(names, max_size=6))
def test_any_names_are_layers_or_refused(given_names):
    try:
        layers, _ = lora_names.group_by_layer(given_names)
        assert layers and all(len(found.matrices) >= 2 for found in layers.values())
    except UnusableLora:
        pass


@given(st.binary(max_size=20))
def test_any_start_is_a_safetensors_file_s_or_refused(start):
    try:
        require_start(start[:9], "x")
        assert start[8:9] == b"{"
    except InvalidInput:
        pass
