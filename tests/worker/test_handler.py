"""A job from input to reply, through the SDK's own `run_job`, on the real classes."""

import asyncio
import contextlib
import inspect
import json
import os
import time
import traceback
from pathlib import Path

import pytest
from PIL import Image

import runpod_handler
from qwen_worker.jobs.request import BACKGROUND_INSTRUCTION

from ..conftest import TINY_WARNING, as_text, file_of, picture_of, respond, run, text_of
from ..pictures.test_images import png_header
from ..support.patience import until

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}
EDIT = {**SMALL, "prompt": "make the background green", "draw_size": "asked"}


def test_generate_replies_with_the_contract_s_fields(ask):
    output = ask(**SMALL, seed=5, _job_id="contract")["output"]
    assert output["success"] is True and output["message"] == "Image generated"
    assert picture_of(output["image"]).size == (256, 256) and "images" not in output
    facts = output["metadata"]
    assert facts.pop("processing_time") > 0
    assert set(facts.pop("timings")) == {"input", "load", "inference", "encode"}
    assert facts.pop("revision").startswith("folder-")
    assert facts.pop("model").endswith("/generate") and facts.pop("worker_version")
    assert facts == {
        "backend": "qwen-image", "prompt": "a red circle", "width": 256, "height": 256, "dimensions": "256x256",
        "preset": "quality", "steps": 2, "guidance_scale": 4.0, "seed": 5, "seeds": [5], "delivery": "inline",
        "output_format": "png", "warnings": [TINY_WARNING],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "warnings"),
    [
        ({}, None),
        ({"_draws_only": ""}, None),
        ({"_draws_only": 5}, None),
        ({"_draws_only": "x" * 1000}, [f"the model is a small one for tests, and draws {'x' * 100} only"]),
    ],
)
def test_only_a_checkpoint_that_says_how_little_it_draws_is_warned_of(cold_worker, tiny, tmp_path, stated, warnings):
    """Of the tiny one itself, the contract's fields above and the recorded replies tell."""
    import shutil

    folder = shutil.copytree(tiny / "generate", tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    del index["_draws_only"]
    (folder / "model_index.json").write_text(json.dumps(index | stated))
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder))
    facts = run(worker, {**SMALL, "num_inference_steps": 1})["output"]["metadata"]
    assert facts.get("warnings") == warnings


def test_the_same_job_gives_the_same_bytes(ask):
    first, again, other = (ask(**SMALL, _job_id=name)["output"] for name in ("same", "same", "other"))
    assert first["image"] == again["image"] != other["image"]
    assert ask(**SMALL, seed=first["metadata"]["seed"])["output"]["image"] == first["image"]


def test_image_3_of_4_equals_a_job_with_its_seed(ask):
    four = ask(**SMALL, seed=10, num_images=4)["output"]
    assert four["metadata"]["seeds"] == [10, 11, 12, 13] and len(set(four["images"])) == 4
    assert four["image"] == four["images"][0]
    assert ask(**SMALL, seed=12)["output"]["image"] == four["images"][2]


def test_guidance_and_the_negative_prompt_act(ask):
    pictures = [
        ask(**SMALL, seed=1, **more)["output"]["image"]
        for more in ({}, {"guidance_scale": 8}, {"guidance_scale": 1}, {"negative_prompt": "blue"}, {"cfg": 4})
    ]
    assert len(set(pictures[:4])) == 4 and pictures[4] == pictures[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_steps_asked_for_are_run(ask, steps):
    output = ask(**SMALL | {"num_inference_steps": steps}, seed=1)["output"]
    assert output["metadata"]["steps"] == steps
    assert len(set(picture_of(output["image"]).tobytes())) > 20  # one step divides by zero in the scheduler: all black


def test_a_job_of_one_step_leaves_no_trace(ask):
    before = ask(**SMALL, seed=1)["output"]["image"]
    ask(**SMALL | {"num_inference_steps": 1})
    assert ask(**SMALL, seed=1)["output"]["image"] == before


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_the_format_asked_for_is_sent(ask, output_format):
    assert picture_of(ask(**SMALL, output_format=output_format)["output"]["image"]).format == output_format.upper()


def test_an_edit_without_a_size_keeps_the_aspect_at_a_megapixel(draw, scene):
    picture, facts = draw(prompt="recolour it", image=as_text(scene.resize((300, 200))), num_inference_steps=1)
    assert picture.size == (1248, 832) and facts["strength"] == 1.0


def test_background_replacement_says_what_it_told_the_model(ask, scene):
    output = ask(**SMALL, task="background_replacement", image=as_text(scene), draw_size="asked")["output"]
    assert output["message"] == "Background replaced"
    assert output["metadata"]["instruction"] == BACKGROUND_INSTRUCTION.format(prompt="a red circle")
    assert output["metadata"]["prompt"] == "a red circle"


def test_an_image_by_url_edits_like_the_image_itself(ask, scene, web):
    address = web(lambda handler: respond(handler, file_of(scene)))
    by_url, inline = ({"image_url": address + "/scene.png"}, {"image": as_text(scene)})
    assert ask(**EDIT, seed=1, **by_url)["output"]["image"] == ask(**EDIT, seed=1, **inline)["output"]["image"]


def test_two_jobs_at_once_on_a_cold_worker_load_once(cold_worker, monkeypatch):
    loads = []
    real = runpod_handler.Pipelines.load

    def counted(self, task):
        before = len(self.loaded)
        found = real(self, task)
        loads.append(len(self.loaded) - before)
        return found

    monkeypatch.setattr(runpod_handler.Pipelines, "load", counted)
    worker = cold_worker()

    async def both():
        return await asyncio.gather(*(worker.answer({"id": name, "input": SMALL}) for name in ("a", "b")))

    assert all(reply["success"] for reply in asyncio.run(both()))
    assert loads == [1, 0]


def test_health_loads_nothing_and_says_what_clients_read(cold_worker):
    worker = cold_worker()
    output = run(worker, {})["output"]
    assert output["status"] == "healthy" and not worker.pipelines.loaded
    assert set(output["environment"]) == {
        "python_version", "timestamp", "server_type", "model_loaded", "gpu_available"
    }  # fmt: skip
    assert output["environment"]["model_loaded"] is False and output["memory_usage"]["rss_gb"] > 0
    run(worker, SMALL)
    run(worker, {"prompt": ""})
    output = run(worker, {"task": "health"})["output"]
    assert output["environment"]["model_loaded"] is True
    model = output["models"][0]
    assert (model["class"], model["device"], model["precision"]) == ("QwenImagePipeline", "cpu", "fp32")
    assert output["counters"]["jobs"] == {"health": 1, "generate": 1, "unknown": 1}
    assert output["counters"]["errors"] == {"invalid_input": 1}


def test_health_is_answered_while_a_job_is_drawn(warm_worker):
    transformer, passes = warm_worker.pipelines.load("generate").pipe.transformer, []
    hook = transformer.register_forward_pre_hook(lambda *_: passes.append(1))

    async def both():
        job = {"id": "long", "input": SMALL | {"num_inference_steps": 100}}
        drawing = asyncio.create_task(warm_worker.answer(job))
        await until(lambda: passes)
        await warm_worker.answer({"id": "health", "input": {}})
        waiting = not drawing.done()
        drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drawing
        return waiting

    try:
        assert asyncio.run(both())
    finally:
        hook.remove()


def test_debug_tells_versions_and_no_value_of_the_environment(cold_worker, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    worker = cold_worker(QWEN_WORKER_VERSION="build-secret-7")
    text = json.dumps(run(worker, {"task": "debug"}))
    assert '"diffusers": "0.' in text and '"QWEN_FALLBACK": "allow"' in text
    assert (
        "verysecret" not in text and "build-secret-7" not in text and str(worker.settings.QWEN_IMAGE_MODEL) not in text
    )


# When a model cannot be had


def stand_in(body):
    facts = body["output"]["metadata"]
    assert body["output"]["success"] is True and facts["backend"] == "pil-fallback" and facts["steps"] == 0
    assert f"no model drew this, it is a stand-in: {facts['fallback_reason']}" in facts["warnings"]
    return facts["fallback_reason"], picture_of(body["output"]["image"])


def test_a_model_that_cannot_load_is_stood_in_for_with_the_reason(cold_worker, tmp_path, scene):
    (tmp_path / "models" / "empty").mkdir(parents=True)
    empty = str(tmp_path / "models" / "empty")
    worker = cold_worker(QWEN_IMAGE_MODEL=empty, QWEN_EDIT_MODEL=empty)
    reason, picture = stand_in(run(worker, SMALL, "a"))
    assert reason.startswith("models/empty holds no model_index.json: it is empty; what is needed is a checkpoint in ")
    assert picture.size == (256, 256)
    assert run(worker, SMALL, "a")["output"]["image"] == run(worker, SMALL, "a")["output"]["image"]
    reason, picture = stand_in(run(worker, {**EDIT, "image": as_text(scene), "output_format": "jpeg"}))
    assert "models/empty" in reason and picture.format == "JPEG"
    health = run(worker, {})["output"]
    assert health["fallback"]["reasons"]["edit"] == reason and health["counters"]["fallbacks"] == 4


def test_a_corrupt_shard_is_stood_in_for_by_its_name_and_not_read_again(cold_worker, tiny, tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(tiny / "generate", tmp_path / "corrupt")
    shard = next((folder / "transformer").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_LOAD_RETRY_SECONDS=0)
    reason, _ = stand_in(run(worker, SMALL))
    assert reason.startswith(f"transformer/{shard.name} is corrupt") and str(tmp_path) not in reason
    monkeypatch.setattr(
        "qwen_worker.checkpoints.search.find", lambda *_: pytest.fail("a permanent failure was tried again")
    )
    assert stand_in(run(worker, SMALL))[0] == reason


def test_weights_that_do_not_fit_their_class_are_a_load_failure_without_a_path(cold_worker, tiny, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(tiny / "generate", tmp_path / "strange")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 3}))
    reason, _ = stand_in(run(cold_worker(QWEN_IMAGE_MODEL=str(folder)), SMALL))
    assert "in the shape 128x256 where its config asks for 96x256" in reason and str(tmp_path) not in reason
    # What the libraries say of it themselves is for the log.
    reason, _ = stand_in(run(cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_LOAD_THREADS=0), SMALL))
    assert reason.startswith("ValueError: Cannot load") and reason.endswith(" while loading transformer")
    assert str(tmp_path) not in reason and "Traceback" in capsys.readouterr().out


def test_forbidden_to_fall_back_the_job_fails_with_the_reason(cold_worker):
    body = run(cold_worker(QWEN_FALLBACK="forbid", QWEN_IMAGE_MODEL="Qwen/Qwen-Image"), SMALL)
    assert body["error"].startswith("model_unavailable: Qwen/Qwen-Image needs a CUDA GPU (from 30.6 GB free")
    assert body["output"] == {"success": False}


def test_forced_to_fall_back_nothing_is_loaded(cold_worker):
    worker = cold_worker(QWEN_FALLBACK="force")
    assert "QWEN_FALLBACK=force" in stand_in(run(worker, SMALL))[0]
    assert not worker.catalogue.checkpoints and worker.loader.failures == {}


def test_weights_that_are_missing_are_not_made_up(cold_worker, tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny / "generate", tmp_path / "partial")
    file = next((folder / "text_encoder").glob("*.safetensors"))
    tensors = load_file(file)
    removed = next(name for name in tensors if "mlp" in name and "layers.0" in name)
    del tensors[removed]
    save_file(tensors, file, metadata={"format": "pt"})
    reason, _ = stand_in(run(cold_worker(QWEN_IMAGE_MODEL=str(folder)), SMALL))
    assert reason.startswith("text_encoder/ lacks 1 of its weights, ")


def test_a_tokenizer_that_cannot_be_read_is_a_load_failure(cold_worker, tiny, tmp_path):
    import shutil

    folder = shutil.copytree(tiny / "generate", tmp_path / "mute")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    reason, _ = stand_in(run(cold_worker(QWEN_IMAGE_MODEL=str(folder)), SMALL))
    assert "tokenizer" in reason


def test_after_a_failed_load_the_same_jobs_are_refused(cold_worker, tiny, tmp_path):
    import shutil

    folder = shutil.copytree(tiny / "generate", tmp_path / "strange")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 3}))
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder))
    wrong = {**SMALL, "width": 272}
    before = run(worker, wrong)["error"]
    stand_in(run(worker, SMALL))
    assert run(worker, wrong)["error"] == before


# When drawing fails


@pytest.fixture
def planted(warm_worker, monkeypatch):
    """planted(error): the loaded transformer raises it at its next forward."""
    pipe = warm_worker.pipelines.load("generate").pipe

    def plant(error):
        def forward(*_, **__):
            raise error

        monkeypatch.setattr(pipe.transformer, "forward", forward)

    return plant


def test_a_fault_inside_the_pipeline_is_internal_and_tells_nothing(ask, planted, monkeypatch, capsys):
    planted(RuntimeError("secret at /srv/weights/x.safetensors"))
    body = ask(**SMALL, _job_id="broken-1")
    assert body == {"error": "internal: broken-1", "output": {"success": False}}
    logged = capsys.readouterr().out
    assert "secret at /srv/weights" in logged and "Traceback" in logged
    monkeypatch.undo()
    assert ask(**SMALL)["output"]["metadata"]["backend"] == "qwen-image"


@pytest.fixture
def spoiled_card(monkeypatch):
    """A card whose context is spoiled: whatever it is asked fails."""
    import torch

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr("qwen_worker.memory.card.room_bytes", lambda beside_others: None)


WORDS = ["CUDA error: an illegal", "CUDA driver error: an illegal", "Triton Error [CUDA]: an"]


@pytest.mark.parametrize("words", WORDS)
def test_a_spoiled_card_asks_for_a_fresh_worker_once(cold_worker, spoiled_card, monkeypatch, words):
    """Nothing of the worker's own was at work: a second start that meets it again asks for no third."""
    errors = [f"{words} memory access was encountered"] * 2 + ["a mistake of ours"]
    for refresh in (True, False):
        worker = cold_worker()
        transformer = worker.pipelines.load("generate").pipe.transformer

        def forward(*_, **__):
            raise RuntimeError(errors[0])

        monkeypatch.setattr(transformer, "forward", forward)
        body = run(worker, SMALL, "spoilt")
        assert f"internal: CUDA has failed on this worker (RuntimeError: {words} memory access" in body["error"]
        assert body.get("stopPod", False) is refresh
        errors.pop(0)
    assert run(worker, SMALL, "ours") == {"error": "internal: ours", "output": {"success": False}}


@pytest.mark.parametrize("words", WORDS)
def test_an_error_of_cuda_that_spoils_nothing_ends_its_job_alone(ask, planted, words):
    planted(RuntimeError(f"{words} argument"))
    assert ask(**SMALL, _job_id="refused") == {"error": "internal: refused", "output": {"success": False}}


def test_a_spoiled_card_while_loading_asks_for_a_fresh_worker_and_no_stand_in_follows(
    cold_worker, spoiled_card, monkeypatch
):
    worker = cold_worker(QWEN_FALLBACK="allow")

    def build(*_):
        worker.pipelines.builder.part = "modulation"
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker.pipelines.builder, "build", build)
    for _ in range(2):
        assert run(worker, SMALL, "spoilt")["stopPod"] is True


def test_memory_that_is_short_while_loading_is_asked_for_again_later(cold_worker, monkeypatch):
    import torch

    worker = cold_worker(QWEN_FALLBACK="allow", QWEN_LOAD_RETRY_SECONDS=0)
    build = worker.pipelines.builder.build

    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.27 GiB")

    monkeypatch.setattr(worker.pipelines.builder, "build", short)
    reason, _ = stand_in(run(worker, SMALL))
    assert reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 5.27 GiB"
    monkeypatch.setattr(worker.pipelines.builder, "build", build)
    assert run(worker, SMALL)["output"]["metadata"]["backend"] == "qwen-image"


def test_out_of_memory_is_told_and_ten_good_jobs_follow(ask, planted, monkeypatch):
    import torch

    planted(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.27 GiB"))
    assert ask(**SMALL)["error"].startswith("out_of_memory: 256x256 did not fit beside ")
    monkeypatch.undo()
    for _ in range(10):
        assert ask(**SMALL)["output"]["success"]


def test_out_of_memory_in_the_vae_is_answered_with_tiles(ask, warm_worker, monkeypatch):
    """The same picture, but for what tiles change at 512 pixels, and no tiles for the job after."""
    import numpy as np
    import torch

    fields = SMALL | {"width": 512, "height": 512, "num_inference_steps": 2, "seed": 4}
    whole = np.asarray(picture_of(ask(**fields)["output"]["image"]), np.int16)
    vae = warm_worker.pipelines.loaded[warm_worker.settings.QWEN_IMAGE_MODEL].pipe.vae
    decode, tried = vae.decoder.forward, []

    def full(x, *args, **kwargs):
        tried.append(tuple(x.shape[3:]))
        if x.shape[3] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.27 GiB")
        return decode(x, *args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", full)
    body = ask(**fields)
    assert "error" not in body, body["error"]
    assert tried[0] == (32, 32) and set(tried[1:]) <= {(16, 16), (16, 8), (8, 16), (8, 8)}
    tiled = np.asarray(picture_of(body["output"]["image"]), np.int16)
    assert abs(tiled - whole).mean() < 3
    monkeypatch.undo()
    assert not vae.use_tiling
    again = np.asarray(picture_of(ask(**fields)["output"]["image"]), np.int16)
    assert np.array_equal(again, whole)


def test_memory_that_does_not_come_back_asks_for_a_fresh_worker(ask, planted, monkeypatch):
    import torch

    planted(torch.OutOfMemoryError("CUDA out of memory"))
    held = iter((0, 2_000_000_000))
    monkeypatch.setattr("qwen_worker.drawing.inference.allocated_bytes", lambda device: next(held))
    body = ask(**SMALL)
    assert body["error"].startswith("out_of_memory") and body["stopPod"] is True  # the SDK's word for refresh_worker


def test_a_size_without_room_is_refused_before_anything_is_loaded(cold_worker, monkeypatch, capsys):
    import dataclasses

    worker = cold_worker()
    plan = worker.pipelines.place("generate")
    small = dataclasses.replace(plan, device="cuda", limit_bytes=2_000_000_000)
    monkeypatch.setitem(worker.pipelines.planner.plans, worker.settings.QWEN_IMAGE_MODEL, small)
    assert run(worker, SMALL | {"width": 2048, "height": 2048})["error"] == (
        "out_of_memory: 2048x2048 needs 3.0 GB with tiny-qwen-image/generate and 2.0 GB may be used; "
        "the largest of this aspect is 1216x1216"
    )
    assert worker.pipelines.loaded == {}
    assert capsys.readouterr().out.endswith(
        "code=out_of_memory (2048x2048 needs 3.0 GB with tiny-qwen-image/generate "
        "and 2.0 GB may be used; the largest of this aspect is 1216x1216)\n"
    )


def test_a_result_over_the_limit_is_refused_with_both_figures(cold_worker):
    worker = cold_worker(QWEN_FALLBACK="force", QWEN_RESULT_LIMIT_MB=0.02)
    error = run(worker, SMALL | {"width": 1024, "height": 1024, "output_format": "png"})["error"]
    assert "the reply has 0." in error and "at most 0.02 MB are delivered" in error
    assert error.startswith("result_too_large: ")


# Bad input: the right code, at once, and the worker lives


def bad_pictures():
    noise = file_of(Image.effect_noise((64, 64), 50))
    return {
        "text": (text_of(b"this is no picture"), "image_unreadable"),
        "half": (text_of(noise[: len(noise) // 2]), "image_unreadable"),
        "bomb": (text_of(png_header(40_000, 40_000)), "invalid_input"),
        "svg": (text_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "image_unreadable"),
        "nothing": (text_of(b""), "invalid_input"),
        "spaces": ("    ", "image_unreadable"),
        "strip": (as_text(Image.new("RGB", (1200, 1))), "invalid_input"),
        "file": ("file:///etc/passwd", "image_fetch_failed"),
        "loopback": ("http://127.0.0.1:1/a.png", "image_fetch_failed"),
        "metadata service": ("http://169.254.169.254/latest/meta-data/", "image_fetch_failed"),
        "data uri": ("data:image/png,abc", "image_unreadable"),
    }


@pytest.mark.parametrize("name", list(bad_pictures()))
def test_a_bad_picture_is_refused_at_once(ask, name):
    picture, code = bad_pictures()[name]
    started = time.monotonic()
    body = ask(**EDIT, image=picture)
    assert time.monotonic() - started < 15  # less than a fetch may take
    assert body["error"].startswith(f"{code}: ") and body["output"] == {"success": False}
    assert ask(task="health")["output"]["status"] == "healthy"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_of_too_many_tokens_is_refused_before_the_model_runs(ask, field, monkeypatch, warm_worker):
    pipe = warm_worker.pipelines.load("generate").pipe
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *_, **__: pytest.fail("the text encoder ran"))
    error = ask(**SMALL | {field: "龘" * 1999})["error"]
    assert error.startswith(f"invalid_input: {field} must be at most 1019 tokens, not ")


def test_the_tokens_of_the_instruction_count_not_those_of_the_prompt(ask, scene, warm_worker):
    tokenizer = warm_worker.pipelines.load("edit").pipe.tokenizer
    prompt = "龘" * 338
    assert len(tokenizer(prompt).input_ids) <= 1019 < len(tokenizer(BACKGROUND_INSTRUCTION + prompt).input_ids)
    assert "tokens" in ask(**SMALL | {"prompt": prompt}, task="background_replacement", image=as_text(scene))["error"]


def test_the_longest_prompt_that_fits_acts_to_its_end(ask, warm_worker):
    pipe = warm_worker.pipelines.load("generate").pipe
    long = "龘" * 338  # three byte tokens each in the tiny vocabulary
    assert 1010 < len(pipe.tokenizer(long + " red").input_ids) <= 1019
    red, blue = (ask(**SMALL | {"prompt": long + end, "seed": 1})["output"]["image"] for end in (" red", " blue"))
    assert red != blue


# The log


def test_a_job_is_one_line_without_prompt_or_picture(ask, capsys):
    ask(**SMALL | {"prompt": "my private words"}, _job_id="log-1")
    ask(prompt="", _job_id="log-2")
    lines = [line for line in capsys.readouterr().out.splitlines() if "task=" in line]
    assert lines[0].startswith("INFO   | log-1 | task=generate size=256x256 steps=2 seconds=")
    assert lines[0].endswith("backend=qwen-image code=ok")
    assert "log-2 | task=unknown" in lines[1] and lines[1].endswith("code=invalid_input")
    assert "private" not in "".join(lines) and max(map(len, lines)) < 200


def test_on_an_endpoint_the_line_is_the_platform_s_json(ask, capsys, monkeypatch):
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "abc")
    ask(task="health", _job_id="log-3")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    line = next(line for line in lines if "task=" in line["message"])
    assert (line["requestId"], line["level"]) == ("log-3", "INFO") and "code=ok" in line["message"]


def test_at_most_eight_frames_lie_between_a_job_and_the_pipeline_s_call(warm_worker, ask, monkeypatch):
    """Those of the job's coroutines, which wait for the inference thread, and those of that thread."""
    pipe, frames = warm_worker.pipelines.load("generate").pipe, []

    def call(*_, **__):
        waiting = warm_worker.jobs["framed"].get_coro()
        while waiting is not None:
            frames.append((waiting.cr_code.co_filename, waiting.cr_code.co_name))
            waiting = waiting.cr_await if inspect.iscoroutine(waiting.cr_await) else None
        frames.extend((frame.filename, frame.name) for frame in traceback.extract_stack()[:-1])
        raise RuntimeError("seen")

    monkeypatch.setattr(type(pipe), "__call__", call)
    ask(**SMALL, _job_id="framed")
    ours = [(Path(file).stem, name) for file, name in frames if "qwen_worker" in file or "runpod_handler" in file]
    assert ours[0] == ("runpod_handler", "answer") and ours[-1] == ("pipeline_call", "draw_pictures")
    assert len(ours) <= 8, ours
