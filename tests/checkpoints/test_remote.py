"""Checkpoints that are not here: refused before a byte is fetched, downloaded whole, and failures told apart."""

import asyncio
import errno
import json
import shutil
import threading
from pathlib import Path

import pytest

from qwen_worker.checkpoints import remote
from qwen_worker.checkpoints.checkpoint import Checkpoint, inspect
from qwen_worker.errors import LoadError

from ..conftest import run
from ..support.local_hub import LocalHub


@pytest.fixture
def hub_of(web, monkeypatch, tmp_path):
    """hub_of(folder): a hub that holds it as Org/Name, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def serve(folder):
        served = LocalHub({"Org/Name": folder})
        monkeypatch.setenv("HF_ENDPOINT", web(served))
        return served

    return serve


def test_an_unknown_checkpoint_is_described_before_its_weights_are_fetched(hub_of, tiny):
    served = hub_of(tiny / "generate")
    found = remote.look_up("Org/Name")
    assert (found.class_name, found.revision, found.folder) == ("QwenImagePipeline", served.commit("Org/Name"), None)
    here = inspect(tiny / "generate")
    assert (found.parameters, found.parts, found.size_multiple) == (here.parameters, here.parts, here.size_multiple)
    assert found.stored_bytes == sum(file.stat().st_size for file in (tiny / "generate").rglob("*.safetensors"))
    assert len(served.looked_at) == 3 and not served.sent  # at the headers alone


def test_a_job_fetches_an_unknown_checkpoint_and_draws_with_it(hub_of, tiny, cold_worker, capsys):
    served = hub_of(tiny / "generate")
    worker = cold_worker(QWEN_IMAGE_MODEL="Org/Name")
    fields = {"prompt": "a", "width": 256, "height": 256, "num_inference_steps": 1}
    facts = run(worker, fields)["output"]["metadata"]
    assert (facts["backend"], facts["model"]) == ("qwen-image", "Org/Name")
    assert facts["revision"] == served.commit("Org/Name")
    assert f"Org/Name at {facts['revision']} loaded in" in capsys.readouterr().out
    assert any(path.endswith(".safetensors") for path in served.paths)
    served.paths.clear()
    again = cold_worker(QWEN_IMAGE_MODEL="Org/Name")
    assert run(again, fields)["output"]["metadata"]["revision"] == served.commit("Org/Name")
    assert served.paths == []  # the cache serves it


def test_a_file_that_a_download_renames_while_bytes_are_counted_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "hub_cache_folder", lambda: tmp_path)
    blobs = tmp_path / "models--Org--Name/blobs"
    blobs.mkdir(parents=True)
    (blobs / "whole").write_bytes(b"12345")
    (blobs / "partial.incomplete").symlink_to(blobs / "gone")  # listed, and not there
    assert remote.fetched_bytes(Checkpoint("Org/Name", "QwenImagePipeline", {}, 16)) == 5


def test_a_job_that_waits_for_a_download_tells_its_bytes(hub_of, tiny, cold_worker, monkeypatch):
    """The transformer's file is kept back until a message has told of the other bytes."""
    served = hub_of(tiny / "generate")
    messages, told = [], threading.Event()
    send = served.send_pieces

    def send_late(handler, file, start):
        if file.parent.name == "transformer":
            assert told.wait(300)
        send(handler, file, start)

    async def post(message):
        messages.append(message)
        if message.get("load", {}).get("bytes"):
            told.set()

    monkeypatch.setattr(served, "send_pieces", send_late)
    worker = cold_worker(QWEN_IMAGE_MODEL="Org/Name", QWEN_PROGRESS_SECONDS=0.02)
    fields = {"prompt": "a", "width": 256, "height": 256, "num_inference_steps": 1}
    reply = asyncio.run(worker.answer({"id": "a", "input": fields}, post))
    assert reply["metadata"]["backend"] == "qwen-image"
    parts = ("transformer", "text_encoder", "vae")
    weights = sum(file.stat().st_size for part in parts for file in (tiny / "generate" / part).glob("*.safetensors"))
    loads = [message["load"] for message in messages if "load" in message]
    downloads = [load for load in loads if load["stage"] == "download"]
    assert all(message["stage"] == "loading" for message in messages if "load" in message)
    assert 0 < downloads[-1]["bytes"] <= downloads[-1]["total_bytes"] <= weights
    assert downloads[-1]["total_bytes"] == weights
    assert {load["stage"] for load in loads} <= set(worker.pipelines.get("generate").stage_seconds)
    assert worker.pipelines.load_state() == {}


def test_compiled_blocks_are_kept_below_hf_home_wherever_the_cache_is(hub_of, tmp_path, cold_worker, monkeypatch):
    from huggingface_hub import constants

    from qwen_worker.speed import compile_store

    folders = []

    def stop(folder, *_):
        folders.append(folder)
        raise LookupError

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compile_store, "process_store", stop)
    loaded = cold_worker(QWEN_SPEEDUPS="compile", QWEN_COMPILED_FOLDER=None).pipelines.load("generate")
    assert folders == [tmp_path / "home/qwen-image-compiled"] and set(loaded.stood_down) == {"compile"}


def test_another_class_is_refused_before_its_weights_are_fetched(hub_of, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    hub_of(folder)
    with pytest.raises(LoadError, match="Org/Name names the pipeline class StableDiffusionPipeline"):
        remote.look_up("Org/Name")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen-image-Q4_K_M.gguf", "GGUF files"),
        ("split_files/qwen_fp8.safetensors", "a ComfyUI folder"),
        ("qwen_fp8.safetensors", "single files"),
    ],
)
def test_a_repository_of_other_files_is_called_by_what_it_holds(hub_of, tmp_path, name, kind):
    file = tmp_path / "other" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    hub_of(tmp_path / "other")
    with pytest.raises(LoadError, match="Org/Name is on the hub and holds no model_index.json") as caught:
        remote.look_up("Org/Name")
    assert kind in caught.value.reason and name in caught.value.reason and not caught.value.transient


def test_variants_and_backups_are_neither_counted_nor_fetched(hub_of, tiny, tmp_path):
    """Nor what lies deeper: a hub's patterns cross folders."""
    folder = Path(shutil.copytree(tiny / "generate", tmp_path / "own"))
    beside = ["transformer/diffusion_pytorch_model.fp16", "text_encoder/model.bf16-00001-of-00002", "vae/ema_model"]
    beside += ["text_encoder/onnx/model", "model"]
    for name in beside:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny / "generate/vae/diffusion_pytorch_model.safetensors", folder / f"{name}.safetensors")
    served = hub_of(folder)
    found = remote.look_up("Org/Name")
    assert found.parameters == inspect(tiny / "generate").parameters
    assert found.stored_bytes == sum(file.stat().st_size for file in (tiny / "generate").rglob("*.safetensors"))
    fetched = remote.download(found)
    assert {file.stem for file in fetched.local_folder.rglob("*.safetensors")} == {"diffusion_pytorch_model", "model"}
    assert not any(path.endswith(f"/{found.revision}/{name}.safetensors") for path in served.paths for name in beside)


def test_a_repository_that_is_stored_quantized_is_counted_by_its_bytes_and_refused_before_it_is_fetched(
    hub_of, tiny, tmp_path
):
    folder = Path(shutil.copytree(tiny / "generate", tmp_path / "own"))
    served = hub_of(folder)
    config = folder / "transformer/config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"quantization_config": {"quant_method": "torchao"}}))
    found = remote.look_up("Org/Name")
    stored = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    assert found.packed == {"transformer": stored} and found.parameters["transformer"] == 0
    config.write_text(json.dumps(plain | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(LoadError, match="transformer/ is stored quantized by gptq, which is not loaded here"):
        remote.look_up("Org/Name")
    assert not any(path.endswith(".safetensors") for path in served.paths)


def test_both_settings_may_write_one_repository_in_two_ways(cold_worker):
    names = {"QWEN_IMAGE_MODEL": "Qwen/Qwen-Image-2.1", "QWEN_EDIT_MODEL": "qwen/qwen-image-2.1"}
    catalogue = cold_worker(**names).catalogue
    assert catalogue.locate("generate") is catalogue.locate("edit")
    other = cold_worker(**names | {"QWEN_EDIT_MODEL": "qwen/qwen-image-2.1@v2"}).catalogue
    assert other.locate("generate") is not other.locate("edit")


def test_a_repository_that_does_not_exist_is_no_passing_failure(hub_of, tiny):
    hub_of(tiny / "generate")
    with pytest.raises(LoadError, match="No/Such does not exist on the hub") as caught:
        remote.look_up("No/Such")
    assert not caught.value.transient


@pytest.mark.parametrize(("status", "transient"), [(403, False), (429, True), (500, True), (503, True)])
def test_what_the_hub_answers_decides_whether_to_try_again(hub_of, tiny, status, transient):
    served = hub_of(tiny / "generate")
    served.status = status
    with pytest.raises(LoadError) as caught:
        remote.look_up("Org/Name")
    assert caught.value.transient is transient


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])  # network volumes refuse by quota
def test_a_disk_that_fills_up_is_no_passing_failure(number):
    with (
        pytest.raises(LoadError, match="m could not be fetched: the disk is full") as caught,
        remote.explain_errors("m"),
    ):
        raise OSError(number, "No space left on device", "/secret/path")
    assert not caught.value.transient


def test_without_a_network_the_failure_is_passing_and_names_no_path(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoadError) as caught:
        remote.look_up("Org/Name")
    assert caught.value.transient and "Org/Name" in caught.value.reason and "/root" not in caught.value.reason


def test_a_passing_failure_is_tried_again_after_a_pause(hub_of, tiny, cold_worker):
    served = hub_of(tiny / "generate")
    served.status = 503
    patient, eager = (cold_worker(QWEN_IMAGE_MODEL="Org/Name", QWEN_LOAD_RETRY_SECONDS=pause) for pause in (3600, 0))
    fields = {"prompt": "a", "width": 256, "height": 256, "num_inference_steps": 1}
    for worker in (patient, eager):
        assert "the hub answered 503" in run(worker, fields)["output"]["metadata"]["fallback_reason"]
    served.status, asked = 200, len(served.paths)
    assert run(patient, fields)["output"]["metadata"]["backend"] == "pil-fallback"
    assert len(served.paths) == asked  # within the pause nothing is tried
    assert run(eager, fields)["output"]["metadata"]["backend"] == "qwen-image"
    assert run(eager, {})["output"]["fallback"]["reasons"] == {}


def test_a_20b_model_is_refused_on_this_machine_without_asking_the_hub(hub_of, tiny, cold_worker):
    served = hub_of(tiny / "generate")
    worker = cold_worker(QWEN_IMAGE_MODEL="Qwen/Qwen-Image", QWEN_EDIT_MODEL="Qwen/Qwen-Image-Edit-2511")
    for fields in ({"prompt": "a"}, {"prompt": "a"}):
        facts = run(worker, fields)["output"]["metadata"]
        assert facts["backend"] == "pil-fallback" and facts["model"] == "Qwen/Qwen-Image"
        assert "needs a CUDA GPU (from 30.6 GB free in bfloat16)" in facts["fallback_reason"]
    assert served.paths == []


def test_a_full_disk_is_refused_before_the_download(hub_of, tiny, cold_worker, monkeypatch):
    served = hub_of(tiny / "generate")
    monkeypatch.setattr("qwen_worker.loading.catalogue.free_disk_bytes", lambda folder: 1000)
    worker = cold_worker(QWEN_IMAGE_MODEL="Org/Name")
    reason = run(worker, {"prompt": "a"})["output"]["metadata"]["fallback_reason"]
    assert "of disk; 0.0 GB are free" in reason and not served.sent
