"""Whole jobs drawn with a transformer from elsewhere than the checkpoint: files, the hub, URLs, folders."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import single_files
from benchmarks.measure import community_files as files
from qwen_tiny import LORA

from ..conftest import as_text, only_proved, picture_of, place_by, respond, run
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.local_hub import LocalHub
from ..support.stored_quantized import store_transformer_nf4

FIELDS = {"prompt": "a large red circle on a blue background", "width": 256, "height": 256, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def weights(tiny):
    return files.weights_of(tiny / "generate")


@pytest.fixture
def worker_with(cold_worker):
    """worker_with(file, **settings): a worker whose generate model has the file's transformer, and no stand-ins."""
    return lambda file, **more: cold_worker(
        **{"QWEN_IMAGE_TRANSFORMER": str(file), "QWEN_FALLBACK": "forbid", "QWEN_TASKS": "generate"} | more
    )


def drawn(worker, **fields):
    body = run(worker, FIELDS | fields)
    assert "error" not in body, body["error"]
    return body["output"]


def loaded_model(worker):
    (model,) = worker.pipelines.loaded.values()
    return model.pipe.transformer


def health_of(worker):
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    return model


@pytest.fixture
def bare_base(tiny, tmp_path):
    """The tiny checkpoint without its transformer's weights."""
    base = tmp_path / "base"
    shutil.copytree(tiny / "generate", base)
    (base / "transformer" / files.FILE).unlink()
    return base


# From this machine


def test_a_plain_file_draws_the_checkpoint_s_own_picture_without_its_transformer(
    weights, worker_with, cold_worker, bare_base, tmp_path
):
    file = files.write_plain(weights, tmp_path / "qwen-image-bf16.safetensors")
    worker = worker_with(file, QWEN_IMAGE_MODEL=str(bare_base))
    output = drawn(worker, seed=1)
    assert output["image"] == drawn(cold_worker(), seed=1)["image"]
    about = health_of(worker)
    label = f"{tmp_path.name}/qwen-image-bf16.safetensors"
    assert about["transformer"]["label"] == label and about["transformer"]["kind"] == "bf16"
    assert about["transformer"]["size"] == file.stat().st_size
    assert output["metadata"]["revision"].endswith(f"+{about['transformer']['revision']}")
    assert about["prepared"] == f"not looked for: the transformer is {label}"
    assert str(tmp_path) not in json.dumps(about)


@pytest.mark.parametrize("fields", [
    {"loras": [{"path": LORA.name, "scale": 0.7}], "num_inference_steps": 2},
    {"preset": "balanced", "num_inference_steps": 8},
])  # fmt: skip
def test_loras_and_the_step_cache_act_on_a_file_as_on_the_checkpoint_s_own(
    weights, tiny, worker_with, cold_worker, tmp_path, fields
):
    file, loras = files.write_plain(weights, tmp_path / "plain.safetensors"), {"QWEN_LORA_ROOTS": (tiny / LORA.parent,)}
    output = drawn(worker_with(file, **loras), seed=1, **fields)
    assert output["image"] == drawn(cold_worker(**loras), seed=1, **fields)["image"]
    plain = FIELDS | {"num_inference_steps": fields["num_inference_steps"], "guidance_scale": 4}
    assert output["image"] != drawn(cold_worker(**loras), seed=1, **plain)["image"]


@pytest.mark.parametrize("kind", ["scale_weight", "Q8_0"])
def test_a_lora_is_drawn_on_weights_that_are_decoded(weights, tiny, worker_with, cold_worker, tmp_path, kind):
    write = files.write_gguf if kind == "Q8_0" else files.write_scaled
    file = write(weights, tmp_path / f"file.{'gguf' if kind == 'Q8_0' else 'safetensors'}", kind)
    settings, fields = {"QWEN_LORA_ROOTS": (tiny / LORA.parent,)}, {"seed": 1, "num_inference_steps": 2}
    with_lora = fields | {"guidance_scale": 4, "loras": [{"path": LORA.name, "scale": 0.7}]}
    worker = cold_worker(**settings)
    pictures = [drawn(worker_with(file, **settings), **with_lora), drawn(worker, **with_lora), drawn(worker, **fields)]
    ours, exact, plain = (np.asarray(picture_of(output["image"]), int) for output in pictures)
    assert abs(ours - exact).mean() < abs(ours - plain).mean() / 3


def test_fp8_with_scales_is_kept_as_it_is_in_an_fp8_plan(weights, worker_with, tmp_path):
    """Quantized anew from its numbers, a matrix would be rounded a second time."""
    file = files.write_scaled(weights, tmp_path / "scaled.safetensors")
    worker = worker_with(file, QWEN_PRECISION="fp8")
    drawn(worker)
    stored, name = load_file(file), "transformer_blocks.2.img_mlp.net.2"
    weight = loaded_model(worker).get_parameter(f"{name}.weight").data
    assert torch.equal(weight.qdata.view(torch.uint8), stored[f"{files.PREFIX}{name}.weight"].view(torch.uint8))
    assert (weight.scale == stored[f"{files.PREFIX}{name}.scale_weight"]).all()


@pytest.mark.parametrize("kind", ["scale_weight", "Q4_0"])
def test_the_modulation_table_is_made_of_decoded_weights(weights, worker_with, tmp_path, kind):
    """Its pictures are those of the modulation's own layers."""
    file = tmp_path / "file"
    files.write_gguf(weights, file, kind) if kind == "Q4_0" else files.write_scaled(weights, file, kind)
    worker = worker_with(file.rename(f"{file}.{'gguf' if kind == 'Q4_0' else 'safetensors'}"), QWEN_PRECISION="bf16")
    computed = drawn(worker, seed=5)["image"]
    worker = worker_with(worker.settings.QWEN_IMAGE_TRANSFORMER, QWEN_PRECISION="bf16")
    place_by(worker, replace(worker.pipelines.place("generate"), table=True))
    looked_up = drawn(worker, seed=5)["image"]
    (loaded,) = worker.pipelines.loaded.values()
    assert loaded.table is not None and looked_up == computed


def test_a_reader_that_fails_gives_way_to_the_plain_one(weights, worker_with, tmp_path, monkeypatch):
    from qwen_worker.weights import reader

    file = files.write_scaled(weights, tmp_path / "scaled.safetensors")
    expected = drawn(worker_with(file), seed=2)["image"]

    def fail(self):
        raise RuntimeError("no thread can be had")

    monkeypatch.setattr(reader.WeightReader, "start", fail)
    worker = worker_with(file)
    reply = drawn(worker, seed=2)
    assert reply["image"] == expected
    assert "no thread can be had" in health_of(worker)["stood_down"]["reader/transformer"]


def test_a_file_with_fewer_layers_draws(weights, worker_with, tmp_path):
    fewer = {name: weight for name, weight in weights.items() if not name.startswith("transformer_blocks.4.")}
    worker = worker_with(files.write_gguf(fewer, tmp_path / "pruned.gguf", "Q8_0"))
    drawn(worker)
    assert len(loaded_model(worker).transformer_blocks) == 4


def test_a_folder_of_a_transformer_draws_as_it_is(tiny, worker_with, cold_worker, bare_base):
    worker = worker_with(tiny / "generate", QWEN_IMAGE_MODEL=str(bare_base))
    assert drawn(worker, seed=3)["image"] == drawn(cold_worker(), seed=3)["image"]
    assert health_of(worker)["transformer"]["kind"] == "a folder of diffusers"


def test_a_folder_that_a_missing_library_has_quantized_is_refused_by_the_library(tiny, worker_with, tmp_path):
    shutil.copytree(tiny / "generate/transformer", tmp_path / "quantized")
    config = json.loads((tmp_path / "quantized/config.json").read_text())
    text = json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}})
    (tmp_path / "quantized/config.json").write_text(text)
    error = run(worker_with(tmp_path / "quantized"), FIELDS)["error"]
    assert "model_unavailable" in error and "modelopt" in error and "not installed" in error


def test_a_folder_that_bitsandbytes_has_quantized_draws_as_it_is_stored(tiny, worker_with, bare_base, tmp_path):
    shutil.copytree(tiny / "generate", tmp_path / "stored")
    store_transformer_nf4(tmp_path / "stored")
    worker = worker_with(tmp_path / "stored/transformer", QWEN_IMAGE_MODEL=str(bare_base))
    drawn(worker)
    about = health_of(worker)
    assert about["transformer"]["kind"] == "bitsandbytes in 4 bits" and "transformer as it is stored" in about["plan"]
    assert type(loaded_model(worker).transformer_blocks[0].attn.to_q).__name__ == "Linear4bit"


def test_single_files_are_judged_like_the_checkpoint_s_own_transformer(sample):
    """The figures of a larger sample are in benchmarks/results/single_files.json."""
    kinds = ["bf16", *sample(["fp8 scale_weight", "Q4_0"], list(single_files.KINDS)[1:])]
    rows = {row["file"]: row for row in single_files.rows(SimpleNamespace(prompts=sample(2, 24), kinds=kinds))}
    for kind in kinds[1:]:
        assert rows["bf16"]["all"] - rows[kind]["all"] <= 5, rows
        assert rows[kind]["PSNR"] > sample(20, 25), rows


@only_proved
def test_the_sdk_s_own_loop_draws_with_a_file_and_ends_with_the_reason_of_one_that_is_none(
    weights, environment, web, tmp_path
):
    file = files.write_gguf(weights, tmp_path / "q8.gguf", "Q8_0")
    plane = ControlPlane()
    settings = {"QWEN_IMAGE_TRANSFORMER": str(file), "QWEN_FALLBACK": "forbid"}
    with WorkerProcess(environment(**settings, **addresses(web(plane)))):
        plane.put("first", FIELDS)
        assert plane.result("first")["output"]["metadata"]["backend"] == "qwen-image"
        file.write_bytes(file.read_bytes()[:1000])
    with WorkerProcess(environment(**settings, **addresses(web(plane)))):
        plane.put("second", FIELDS)
        assert "q8.gguf is corrupt or cut short" in plane.result("second")["error"]


def test_an_edit_model_takes_one_too_and_shares_the_rest(tiny, cold_worker, tmp_path):

    files_of_edit = files.weights_of(tiny / "edit")
    file = files.write_gguf(files_of_edit, tmp_path / "edit.gguf", "Q8_0")
    worker = cold_worker(QWEN_EDIT_TRANSFORMER=str(file), QWEN_FALLBACK="forbid")
    drawn(worker)
    picture = as_text(Image.new("RGB", (256, 256), "white"))
    edit = run(worker, {"task": "edit", "image": picture, "prompt": "make it red", "num_inference_steps": 1})
    assert "error" not in edit
    about = {model["class"]: model for model in run(worker, {"task": "health"})["output"]["models"]}
    assert about["QwenImagePipeline"]["transformer"] is None
    assert about["QwenImageEditPipeline"]["transformer"]["kind"].startswith("GGUF Q8_0")
    assert "vae" in about["QwenImageEditPipeline"]["shared"]


# From the hub and from URLs


@pytest.fixture
def hub_of(web, monkeypatch, tmp_path):
    """hub_of(**folders by hub id): a hub that holds them, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))

    def serve(repos):
        served = LocalHub(repos)
        monkeypatch.setenv("HF_ENDPOINT", web(served))
        return served

    return serve


def test_a_hub_s_file_is_drawn_with_and_the_base_s_own_transformer_is_not_fetched(
    weights, tiny, worker_with, hub_of, tmp_path
):
    (tmp_path / "repo").mkdir()
    files.write_gguf(weights, tmp_path / "repo/qwen-image-Q8_0.gguf", "Q8_0")
    served = hub_of({"Org/Base": tiny / "generate", "City/Qwen-Image-GGUF": tmp_path / "repo"})
    commit = served.commit("City/Qwen-Image-GGUF")
    settings = {"QWEN_IMAGE_MODEL": "Org/Base"}
    worker = worker_with(f"City/Qwen-Image-GGUF@{commit}/qwen-image-Q8_0.gguf", **settings)
    drawn(worker)
    about = health_of(worker)["transformer"]
    assert (about["label"], about["revision"]) == ("City/Qwen-Image-GGUF/qwen-image-Q8_0.gguf", commit)
    fetched = [path for path in served.paths if path.endswith(".safetensors")]
    assert fetched and not any("/transformer/" in path for path in fetched)
    served.paths.clear()
    drawn(worker_with(f"City/Qwen-Image-GGUF/qwen-image-Q8_0.gguf@{commit}", **settings))
    assert served.paths == []  # the cache serves both


def test_a_hub_s_file_that_is_none_is_refused_by_its_header_before_it_is_fetched(tiny, worker_with, hub_of, tmp_path):
    (tmp_path / "repo").mkdir()
    flux = {f"double_blocks.{n}.img_attn.qkv.weight": torch.zeros(512, 1024) for n in range(4)}
    files.write_plain(flux, tmp_path / "repo/flux.safetensors", prefix="")
    served = hub_of({"Org/Base": tiny / "generate", "Org/Flux": tmp_path / "repo"})
    error = run(worker_with("Org/Flux/flux.safetensors", QWEN_IMAGE_MODEL="Org/Base"), FIELDS)["error"]
    assert "flux.safetensors is no transformer of Qwen-Image" in error and "double_blocks.0" in error
    assert sum(served.sent.values()) <= 3 << 20  # the beginning alone, in pieces of a server that sends ahead
    missing = run(worker_with("Org/Flux/other.gguf", QWEN_IMAGE_MODEL="Org/Base"), FIELDS)["error"]
    assert "holds no other.gguf; it holds flux.safetensors" in missing


def test_a_url_is_fetched_once_and_goes_on_where_it_broke_off(weights, worker_with, hub_of, web, tmp_path):
    from qwen_worker.settings import hub_home

    hub_of({})
    file = files.write_scaled(weights, tmp_path / "scaled.safetensors")
    content, asked = file.read_bytes(), []

    def answer(handler):
        asked.append(handler.headers.get("Range"))
        if start := int((asked[-1] or "bytes=0-").removeprefix("bytes=")[:-1]):
            return respond(handler, content[start:], 206)
        if len(asked) == 2:  # the first is of the header
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2])
            handler.close_connection = True
            return None
        return respond(handler, content)

    address = f"{web(answer)}/models/scaled.safetensors?token=secret"
    error = run(worker_with(address), FIELDS)["error"]
    assert "scaled.safetensors could not be fetched" in error and "secret" not in error
    worker = worker_with(address)
    drawn(worker)
    assert asked[0] is None and asked[-1] is not None and asked[-1] != "bytes=0-"
    (kept,) = (hub_home() / "qwen-image-transformers").iterdir()
    assert kept.read_bytes() == content
    count = len(asked)
    drawn(worker_with(address))
    assert len(asked) == count
    assert "secret" not in json.dumps(health_of(worker))


# Bad settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/nowhere/a.gguf", "is neither a file nor a folder on this worker"),
        ("Org", "names no transformer"),
        ("Org/Name/../a.gguf", "names no transformer"),
        ("ftp://host/a.gguf", "leads to no public http"),
        ("http://[", "is not a valid URL"),
    ],
)
def test_what_leads_nowhere_is_refused_before_anything_is_loaded(worker_with, text, words):
    worker = worker_with(text)
    error = run(worker, FIELDS)["error"]
    assert error.startswith("model_unavailable: ") and words in error
    assert worker.pipelines.loaded == {}


def test_a_base_of_another_shape_refuses_the_file_before_weights_are_read(weights, worker_with, bare_base, tmp_path):
    config = json.loads((bare_base / "transformer/config.json").read_text())
    (bare_base / "transformer/config.json").write_text(json.dumps(config | {"joint_attention_dim": 64}))
    file = files.write_gguf(weights, tmp_path / "a.gguf", "Q8_0")
    error = run(worker_with(file, QWEN_IMAGE_MODEL=str(bare_base)), FIELDS)["error"]
    assert "a.gguf has txt_norm.weight in the shape 128, where the base checkpoint's config asks for 64" in error
