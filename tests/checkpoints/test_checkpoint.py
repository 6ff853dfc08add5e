"""A checkpoint is found in the documented order, described from its headers, and refused by file or class."""

import json
import os
import shutil
from pathlib import Path

import pytest

from qwen_worker.checkpoints import checkpoint, classes, files, search, sharing
from qwen_worker.errors import LoadError

from ..support.patience import little_work

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny generate checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny / "generate", tmp_path / "somewhere" / "copy"))


def cached(root, source, hub_id="Org/Name", commit=COMMIT, ref="main"):
    """The source as the hub's cache would hold it."""
    folder = root / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return root


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reason(model, roots=()):
    with pytest.raises(LoadError) as caught:
        search.find(str(model), roots)
    assert not caught.value.transient and "/tmp" not in caught.value.reason
    return caught.value.reason


def test_a_folder_is_described_from_its_headers(tiny):
    found = search.find(str(tiny / "generate"), ())
    assert found.class_name == "QwenImagePipeline" and found.pipeline_class.tasks == {"generate"}
    assert found.size_multiple == 32  # its VAE compresses 16x
    assert found.name == f"{tiny.name}/generate" and found.revision.startswith("folder-")
    edit = search.find(str(tiny / "edit"), ())
    assert edit.pipeline_class.max_images == 1 and "background_replacement" in edit.pipeline_class.tasks


def test_the_parameters_are_those_that_torch_counts(tiny):
    from safetensors import safe_open

    found = search.find(str(tiny / "generate"), ())
    for component, count in found.parameters.items():
        total = 0
        for file in (tiny / "generate" / component).glob("*.safetensors"):
            with safe_open(file, "pt") as weights:
                total += sum(weights.get_tensor(name).numel() for name in weights.keys())
        assert count == total > 0


def test_the_roots_are_searched_in_order_and_the_commit_is_the_revision(tiny, tmp_path):
    empty, cache, plain = tmp_path / "empty", cached(tmp_path / "cache", tiny / "generate"), tmp_path / "plain"
    shutil.copytree(tiny / "edit", plain / "Org" / "Name")
    assert search.find("Org/Name", (empty,)) is None
    found = search.find("Org/Name", (empty, cache, plain))
    assert (found.name, found.revision, found.class_name) == ("Org/Name", COMMIT, "QwenImagePipeline")
    assert search.find("Org/Name", (plain, cache)).class_name == "QwenImageEditPipeline"


@pytest.mark.parametrize("ref", [b"\xff\xfe\x00", b"", b"../../x", b"a" * 5000, b"two words"])
def test_a_damaged_ref_is_told_and_the_next_place_is_tried(tiny, tmp_path, capsys, ref):
    cache, whole = cached(tmp_path / "cache", tiny / "generate"), cached(tmp_path / "whole", tiny / "edit")
    (cache / "models--Org--Name/refs/main").write_bytes(ref)
    assert search.find("Org/Name", (cache,)) is None
    assert "models--Org--Name/refs/main names no commit and is damaged" in capsys.readouterr().out
    assert search.find("Org/Name", (cache, whole)).class_name == "QwenImageEditPipeline"


def test_a_revision_chooses_among_snapshots(tiny, tmp_path):
    other = "f" * 40
    cache = cached(tmp_path, tiny / "generate")
    cached(cache, tiny / "edit", commit=other, ref="v2")
    assert search.find("Org/Name", (cache,)).revision == COMMIT
    assert search.find("Org/Name@v2", (cache,)).class_name == "QwenImageEditPipeline"
    assert search.find(f"Org/Name@{other}", (cache,)).revision == other
    assert search.find("Org/Name@nothing", (cache,)) is None


def test_without_a_ref_the_only_snapshot_is_taken(tiny, tmp_path):
    cache = cached(tmp_path, tiny / "generate", ref=None)
    assert search.find("Org/Name", (cache,)).revision == COMMIT
    cached(cache, tiny / "edit", commit="e" * 40, ref=None)
    assert search.find("Org/Name", (cache,)) is None


@pytest.mark.parametrize("written", ["org/name", "ORG/Name"])
def test_ids_are_equal_whatever_their_case(tiny, tmp_path, written):
    """As platforms place models beforehand: in folders in lower case."""
    cache = cached(tmp_path / "cache", tiny / "generate", hub_id=written)
    plain = tmp_path / "plain"
    shutil.copytree(tiny / "edit", plain / written)
    found = search.find("Org/Name", (cache,))
    assert (found.name, found.revision) == ("Org/Name", COMMIT)
    assert search.find("Org/Name", (plain,)).class_name == "QwenImageEditPipeline"


def test_of_several_spellings_the_own_one_comes_first_and_whole_ones_alone_count(tiny, tmp_path):
    own, other = "a" * 40, "b" * 40
    cache = cached(tmp_path, tiny / "generate", hub_id="org/name", commit=other)
    cached(cache, tiny / "generate", commit=own)
    assert search.find("Org/Name", (cache,)).revision == own
    assert search.find("ORG/NAME", (cache,)).revision == own  # neither is its own: in alphabetical order
    (cache / "models--Org--Name/snapshots" / own / "model_index.json").unlink()
    assert search.find("Org/Name", (cache,)).revision == other


def test_a_revision_s_case_counts(tiny, tmp_path):
    cache = cached(tmp_path, tiny / "generate", hub_id="org/name", ref="Main")
    assert search.find("Org/Name@Main", (cache,)).revision == COMMIT
    assert search.find("Org/Name@MAIN", (cache,)) is None


def test_a_download_cut_short_is_passed_over(tiny, tmp_path):
    cache = cached(tmp_path, tiny / "generate")
    for file in cache.rglob("transformer/*.safetensors"):
        file.unlink()
    assert search.find("Org/Name", (cache,)) is None


@pytest.mark.parametrize(
    "missing",
    ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"],
)
def test_a_file_that_a_load_reads_is_missed_before_it(tiny, tmp_path, copy, missing):
    (copy / missing).unlink()
    assert missing.split("/")[1] in reason(copy)
    cache, whole = cached(tmp_path / "cache", copy), cached(tmp_path / "whole", tiny / "generate", commit="a" * 40)
    assert search.find("Org/Name", (cache,)) is None  # so that a download goes on with it
    assert search.find("Org/Name", (cache, whole)).revision == "a" * 40


def test_a_shard_without_its_index_is_a_download_cut_short(copy):
    file = weights(copy)
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00009.safetensors"))
    assert reason(copy) == "transformer/ holds shards of 9 and no index that names them"
    assert not checkpoint.is_complete(copy)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 5}])
def test_an_index_that_names_no_files_is_corrupt(copy, weight_map):
    name = "diffusion_pytorch_model.safetensors.index.json"
    (copy / "transformer" / name).write_text(json.dumps({"weight_map": weight_map}))
    assert reason(copy) == f"transformer/{name} is corrupt: its weight_map names no files"


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/model.safetensors", "x/y.safetensors", "config.json", "x" * 5000 + ".safetensors"],
)
def test_an_index_that_leads_elsewhere_is_refused(copy, name):
    index = "diffusion_pytorch_model.safetensors.index.json"
    (copy / "transformer" / index).write_text(json.dumps({"weight_map": {"a": name}}))
    assert reason(copy) == f'transformer/{index} is corrupt: "{name[:60]}" is no name of a safetensors file'


def test_an_index_without_end_is_refused_unread(copy):
    index = "diffusion_pytorch_model.safetensors.index.json"
    with (copy / "transformer" / index).open("wb") as file:
        file.truncate(100_000_000_000)  # a hole, which takes no disk
    assert reason(copy) == f"transformer/{index} is corrupt: it has more than 50,000,000 bytes"


BESIDE = ["ema_model", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema", "backup"]


@pytest.mark.parametrize("name", BESIDE)
def test_weights_beside_those_that_the_library_reads_are_not_read(tiny, copy, name):
    alone = checkpoint.inspect(copy)
    for component, own in (("transformer", name), ("vae", name), ("text_encoder", f"model.{name}")):
        shutil.copy(weights(copy, component), copy / component / f"{own}.safetensors")
    variant = {"weight_map": {"a": f"{name}.safetensors"}}
    (copy / "transformer" / f"{name}.safetensors.index.json").write_text(json.dumps(variant))
    found = checkpoint.inspect(copy)
    assert (found.parameters, found.parts) == (alone.parameters, alone.parts)
    for component in classes.WEIGHTS:
        (file,) = files.shards(copy, component)
        assert file.stem == ("model" if component == "text_encoder" else "diffusion_pytorch_model")
    assert sharing.same_component(copy / "vae", tiny / "generate/vae")


def test_where_there_are_an_index_and_one_file_each_library_reads_its_own_choice(copy):
    """diffusers the shards, transformers the file."""
    for component, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shutil.copy(weights(copy, component), copy / component / f"{stem}-00001-of-00001.safetensors")
        index = {"weight_map": {"a": f"{stem}-00001-of-00001.safetensors"}}
        (copy / component / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    read = [files.shards(copy, component)[0].name for component in ("transformer", "text_encoder")]
    assert read == ["diffusion_pytorch_model-00001-of-00001.safetensors", "model.safetensors"]


def test_a_component_that_has_a_variant_alone_is_refused_by_the_name_that_it_lacks(copy):
    file = weights(copy)
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert reason(copy) == (
        "transformer/ holds no diffusion_pytorch_model.safetensors and no index, which are what its library reads, but "
        "diffusion_pytorch_model.fp16.safetensors"
    )


@pytest.mark.parametrize("entry", [None, [], "x", ["diffusers"], [None, None]])
def test_a_component_that_the_index_does_not_name_is_refused(copy, entry):
    edit_json(copy / "model_index.json", scheduler=entry)
    assert reason(copy) == "model_index.json names no library and class for scheduler"


def test_a_vae_whose_compression_cannot_be_read_is_refused(copy):
    edit_json(copy / "vae/config.json", temperal_downsample=5)
    assert "temperal_downsample is not a list" in reason(copy)


@pytest.mark.parametrize("model", ["x" * 5000, "/" + "x" * 5000, "@", "a/b/c", "~nobody/x", "Org/Name\0"])
def test_any_setting_gives_a_reason_of_bounded_length(model):
    assert len(reason(model)) < 400 and len(checkpoint.label_of(model)) <= 200


def test_released_models_are_known_by_name():
    found = checkpoint.released("Qwen/Qwen-Image-Edit-2511@abc")
    assert (found.class_name, found.revision, found.folder) == ("QwenImageEditPlusPipeline", "abc", None)
    assert found.size_multiple == 16 and found.pipeline_class.max_images == 3
    assert checkpoint.released("Qwen/Qwen-Image-2.1").size_multiple == 32
    assert checkpoint.released("qwen/qwen-image").name == "Qwen/Qwen-Image"
    assert checkpoint.released("Someone/else") is None


def test_what_is_neither_folder_nor_hub_id_is_said_to_be_neither():
    assert "neither a folder here nor a hub id" in reason("qwen image")


def test_a_folder_that_is_not_there(tmp_path):
    assert "is not a folder on this worker" in reason(tmp_path / "a" / "b")


NEEDED = "what is needed is a checkpoint in diffusers' layout, such as Qwen/Qwen-Image"
FILES = "and a transformer's file goes into QWEN_IMAGE_TRANSFORMER or QWEN_EDIT_TRANSFORMER"


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen-image-Q4_K_M.gguf", "GGUF files"), ("qwen_fp8.safetensors", "single files")]
)
def test_what_is_no_checkpoint_is_called_by_what_it_is(tmp_path, name, kind):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"")
    for model in (folder, folder / name):
        found = reason(model)
        assert kind in found and name in found and "such as Qwen/Qwen-Image" in found


def test_an_empty_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert reason(tmp_path / "a" / "b") == f"a/b holds no model_index.json: it is empty; {NEEDED}"


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (
            ["diffusion_models/qwen_image_fp8.safetensors", "vae/qwen_vae.safetensors"],
            "diffusion_models/qwen_image_fp8",
        ),
        (["models/checkpoints/", "models/loras/", "main.py"], "models/checkpoints/"),
        (["split_files/text_encoders/qwen_2.5_vl_7b.safetensors"], "split_files/text_encoders/"),
        (["unet/qwen-image-Q4_K_M.gguf", "clip/"], "unet/qwen-image-Q4_K_M.gguf"),
    ],
)
def test_a_comfyui_folder_is_called_so_however_deep_its_files_lie_and_without_any(tmp_path, names, example):
    folder = tmp_path / "a" / "b"
    for name in names:
        place = folder / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.write_bytes(b"")
    found = reason(folder)
    assert found.startswith(f"a/b holds no model_index.json: it is a ComfyUI folder ({example}")
    assert found.endswith(FILES)


def test_a_component_alone_is_called_a_part_of_a_checkpoint(copy):
    for folder in (copy / "transformer", copy):
        (copy / "model_index.json").unlink(missing_ok=True)
        assert "it is a part of a diffusers checkpoint (" in reason(folder)


def test_a_folder_without_end_is_named_in_a_moment(tmp_path):
    for number in range(3000):
        (tmp_path / "a" / "b" / str(number)).mkdir(parents=True)
    with little_work():
        assert "it is no diffusers checkpoint; what is needed" in reason(tmp_path / "a" / "b")


def test_a_checkpoint_of_another_model_is_refused_by_its_class(copy):
    edit_json(copy / "model_index.json", _class_name="FluxPipeline")
    assert "names the pipeline class FluxPipeline; served are QwenImagePipeline" in reason(copy)


def test_a_guidance_distilled_checkpoint_is_refused_by_name(copy):
    edit_json(copy / "transformer/config.json", guidance_embeds=True)
    assert "is guidance-distilled (guidance_embeds)" in reason(copy)


def weights(folder, component="transformer"):
    return sorted((folder / component).glob("*.safetensors"))[0]


def test_a_truncated_shard_is_refused_by_its_file(copy):
    file = weights(copy)
    size = file.stat().st_size
    os.truncate(file, size - 1000)
    assert reason(copy) == (
        f"transformer/{file.name} is corrupt: its header describes {size:,} bytes and it has {size - 1000:,}"
    )


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 8, b"\x10" + b"\0" * 7 + b"not json at all!", b"\x04" + b"\0" * 7 + b"[12]"]
)
def test_a_shard_without_a_header_is_refused_by_its_file(copy, damage):
    file = weights(copy, "vae")
    file.write_bytes(damage)
    assert reason(copy).startswith(f"vae/{file.name} is corrupt: ")


def write_header(file, entries):
    """A safetensors file of tensors without bytes, by their entries in the header."""
    header = b"{" + b",".join(entries) + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def empty_tensors(count, first=0):
    return [b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (empty_tensors(60_000), "vae/{} has 60,000 tensors, and at most 50,000 are read"),
        (empty_tensors(1_500_000), "vae/{} has a header of 85,888,891 bytes, and at most 10,000,000 are read"),
        (
            [b'"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % (b"x" * 5000)],
            "vae/{} has a tensor with a name of",
        ),
        ([b'"x":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}' % b",".join([b"9"] * 10**6)], "a shape that no file"),
    ],
    ids=["60,000 tensors", "1,500,000 tensors", "a name of 5,000 characters", "a million dimensions"],
)
def test_a_header_without_end_is_refused_in_a_moment(copy, entries, words):
    file = weights(copy, "vae")
    write_header(file, entries)
    with little_work():
        assert words.format(file.name) in reason(copy)


def test_the_tensors_of_all_shards_count_together(copy):
    names = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        write_header(copy / "vae" / name, empty_tensors(20_000, 20_000 * number))
    index = {"weight_map": dict(enumerate(names))}
    (copy / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert reason(copy) == "vae/ holds more than 50,000 tensors"


def test_a_shard_that_the_index_names_and_is_missing(copy):
    file = weights(copy)
    index = {"weight_map": {"a": file.name, "b": "model-00002-of-00002.safetensors"}}
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert reason(copy) == "transformer/model-00002-of-00002.safetensors is named by the index and missing"


def test_a_component_without_weights(copy):
    weights(copy, "text_encoder").unlink()
    assert "holds no safetensors file in text_encoder/" in reason(copy)


def test_a_damaged_config_is_refused_by_its_file(copy):
    (copy / "model_index.json").write_text("{")
    assert reason(copy) == "model_index.json is corrupt: not JSON"


def test_components_are_the_same_by_content(tiny, copy):
    for name in sharing.SHAREABLE:
        assert sharing.same_component(tiny / "edit" / name, tiny / "generate" / name)
        assert sharing.same_component(copy / name, tiny / "generate" / name)
    assert not sharing.same_component(tiny / "edit" / "transformer", tiny / "generate" / "transformer")


def test_one_byte_of_difference_is_enough(tiny, copy):
    with weights(copy, "vae").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert not sharing.same_component(copy / "vae", tiny / "generate" / "vae")


def test_a_config_differs_by_what_it_says_not_by_who_saved_it(tiny, copy):
    edit_json(copy / "vae/config.json", _diffusers_version="0.0.1")
    assert sharing.same_component(copy / "vae", tiny / "generate" / "vae")
    edit_json(copy / "vae/config.json", z_dim=32)
    assert not sharing.same_component(copy / "vae", tiny / "generate" / "vae")


def test_another_set_of_files_is_another_component(tiny, copy):
    (copy / "tokenizer" / "added.json").write_text("{}")
    assert not sharing.same_component(copy / "tokenizer", tiny / "generate" / "tokenizer")


def test_blobs_of_the_hub_cache_are_compared_by_name_unread(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for folder, name, text in (("a", "1" * 64, "xx"), ("b", "2" * 64, "xx")):
        (blobs / name).write_text(text)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").symlink_to(blobs / name)
    assert not sharing.same_file(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")


@pytest.mark.parametrize(("model", "label"), [("/none", "none"), ("/a/b/c", "b/c"), ("Org/Name@main", "Org/Name")])
def test_a_model_is_called_by_the_end_of_its_path(model, label):
    assert checkpoint.label_of(model) == label
