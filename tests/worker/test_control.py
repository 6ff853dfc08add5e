"""Whole jobs that follow control pictures: as diffusers' own pipeline draws them, with every speed-up, and refused."""

import asyncio
import functools
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_tiny import LORA
from qwen_tiny.stages import few_step

from ..conftest import as_text, only_proved, picture_of, place_by, run, warnings_of
from ..support.control_nets import random_controlnet
from .test_stops import Hold, stopped

JOB = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def net(tiny, tmp_path_factory):
    return random_controlnet(tiny, tmp_path_factory.mktemp("nets") / "org-net")


@pytest.fixture(scope="module")
def edges():
    """A white square's outline, 256 x 256."""
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[64:192, [64, 191]] = picture[[64, 191], 64:192] = 255
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def worker(warm_workers, net):
    return warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid", QWEN_PROGRESS_SECONDS=0.02)


def drawn(worker, **fields):
    body = run(worker, {**JOB, **fields})
    assert "error" not in body, body["error"]
    return np.asarray(picture_of(body["output"]["image"])).astype(int), body["output"]["metadata"]


def error_of(worker, **fields):
    return run(worker, {**JOB, **fields})["error"]


def psnr(one, other):
    return 10 * np.log10(255**2 / max(1e-9, np.square(one - other).mean()))


@functools.cache
def stock_pictures(tiny, net, scales, start=0.0, end=1.0):
    """What diffusers' own pipeline draws of the job from its noise, with one ControlNet or the one for several."""
    import diffusers

    load = functools.partial(diffusers.DiffusionPipeline.from_pretrained, tiny / "generate", dtype=torch.float32)
    module = diffusers.QwenImageControlNetModel.from_pretrained(net, dtype=torch.float32)
    if len(scales) > 1:
        module = diffusers.QwenImageMultiControlNetModel([module])
    pipe = diffusers.QwenImageControlNetPipeline(**load().components, controlnet=module)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_stock(tiny, net, edges, scales=(1.0,), start=0.0, end=1.0, guidance=4.0):
    pipe = stock_pictures(tiny, net, scales)
    generator = torch.Generator().manual_seed(JOB["seed"])
    latents = pipe.prepare_latents(1, 16, 256, 256, torch.float32, torch.device("cpu"), generator)
    several = len(scales) > 1
    return np.asarray(
        pipe(
            prompt=JOB["prompt"], negative_prompt=" ", true_cfg_scale=guidance, width=256, height=256,
            num_inference_steps=JOB["num_inference_steps"], generator=generator, latents=latents,
            control_image=[edges] * len(scales) if several else edges,
            controlnet_conditioning_scale=list(scales) if several else scales[0],
            control_guidance_start=start, control_guidance_end=end, max_sequence_length=1024,
        ).images[0]
    ).astype(int)  # fmt: skip


def test_a_job_draws_what_diffusers_own_pipeline_draws(worker, tiny, net, edges):
    ours, metadata = drawn(worker, control_image=as_text(edges), control_type="canny")
    assert abs(ours - by_stock(tiny, net, edges)).max() <= 1
    assert metadata["control"] == {
        "model": f"{net.parent.name}/org-net", "types": ["canny"], "scales": [1.0], "preprocess": ["none"],
        "start": 0.0, "end": 1.0, "steps": metadata["steps"],
    }  # fmt: skip
    assert not warnings_of(metadata) and metadata["backend"] == "qwen-image"
    plain, metadata = drawn(worker)
    assert psnr(ours, plain) < 25 and "control" not in metadata


def test_two_control_pictures_each_have_their_weight(worker, tiny, net, edges):
    both = {"control_image": [as_text(edges), as_text(edges)], "control_scale": [0.75, 0.5]}
    ours, metadata = drawn(worker, **both)
    assert abs(ours - by_stock(tiny, net, edges, scales=(0.75, 0.5))).max() <= 1
    assert metadata["control"]["scales"] == [0.75, 0.5]


def test_steps_outside_of_start_and_end_are_drawn_without_it(worker, tiny, net, edges):
    ours, metadata = drawn(worker, control_image=as_text(edges), control_start=0.25, control_end=0.75)
    assert abs(ours - by_stock(tiny, net, edges, start=0.25, end=0.75)).max() <= 1
    assert (metadata["control"]["start"], metadata["control"]["end"]) == (0.25, 0.75)


def test_a_scale_of_nothing_draws_the_plain_picture_to_the_bit(worker, edges):
    assert np.array_equal(drawn(worker, control_image=as_text(edges), control_scale=0)[0], drawn(worker)[0])


def test_edges_can_be_found_here(worker, scene):
    from qwen_worker.pictures.control import canny

    whole = {"width": 512, "height": 512, "num_inference_steps": 2}
    ours, metadata = drawn(worker, control_image=as_text(scene), control_preprocess="canny", **whole)
    assert np.array_equal(ours, drawn(worker, control_image=as_text(canny(scene)), **whole)[0])
    assert metadata["control"]["types"] == ["canny"] and metadata["control"]["preprocess"] == ["canny"]


def test_a_control_picture_of_another_aspect_is_cut_and_the_reply_says_so(worker, scene):
    _, metadata = drawn(worker, control_image=as_text(scene.resize((512, 256))), num_inference_steps=1)
    assert "it is scaled to cover the picture, and cut at left and right" in warnings_of(metadata)[0]


def test_seeds_progress_and_pictures_of_a_job_are_as_without(worker, edges):
    control = {"control_image": as_text(edges), "num_inference_steps": 2}
    body = run(worker, {**JOB, **control, "num_images": 2})["output"]
    second = np.asarray(picture_of(body["images"][1])).astype(int)
    assert np.array_equal(second, drawn(worker, **control | {"seed": JOB["seed"] + 1})[0])


def test_the_step_cache_serves_such_a_job_too(worker, edges):
    control = {"control_image": as_text(edges), "num_inference_steps": 8}
    cached, metadata = drawn(worker, **control, preset="balanced")
    exact, _ = drawn(worker, **control, preset="quality")
    assert metadata["step_cache"] is True and not np.array_equal(cached, exact) and psnr(cached, exact) > 25


@contextmanager
def stock_with_lora(tiny, net, scale, schedule=None):
    """Within, diffusers' own pipeline has the tiny few-step LoRA; `schedule`: changes to its own."""
    pipe = stock_pictures(tiny, net, (1.0,))
    scheduler = pipe.scheduler
    pipe.load_lora_weights(tiny / LORA.parent, weight_name=LORA.name, adapter_name="one")
    pipe.set_adapters("one", scale)
    pipe.scheduler = type(scheduler).from_config(scheduler.config, **schedule or {})
    try:
        yield
    finally:
        pipe.unload_lora_weights()
        pipe.scheduler = scheduler


def test_a_job_s_lora_changes_the_transformer_as_diffusers_own_pipeline_has_it(
    warm_workers, tiny, net, edges, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("loras")
    shutil.copy(tiny / LORA, folder / "style.safetensors")  # whose name says nothing of few steps
    worker = warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid", QWEN_LORA_ROOTS=str(folder))
    control, lora = {"control_image": as_text(edges)}, {"loras": [{"path": "style.safetensors", "scale": 0.6}]}
    ours, metadata = drawn(worker, **control, **lora)
    with stock_with_lora(tiny, net, 0.6):
        assert abs(ours - by_stock(tiny, net, edges)).max() <= 2
    assert metadata["loras"][0]["scale"] == 0.6 and not warnings_of(metadata)
    assert psnr(ours, drawn(worker, **control)[0]) < 45 and psnr(ours, drawn(worker, **lora)[0]) < 45


def test_few_steps_follow_the_lora_s_schedule(warm_workers, tiny, net, edges):
    fast = {"QWEN_IMAGE_FAST_LORA": str(tiny / LORA)}
    worker = warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid", **fast)
    ours, metadata = drawn(worker, control_image=as_text(edges), preset="fast")
    with stock_with_lora(tiny, net, 1.0, few_step.SCHEDULER):
        assert abs(ours - by_stock(tiny, net, edges, guidance=1.0)).max() <= 2
    assert (metadata["preset"], metadata["guidance_scale"]) == ("fast", 1.0) and not warnings_of(metadata)


def test_previews_show_a_controlled_drawing_and_do_not_change_it(worker, edges):
    fields = {**JOB, "control_image": as_text(edges), "num_inference_steps": 20}
    told = []

    async def tell(message):
        told.append(message)

    worker.previewer.cost_seconds = 0.0
    reply = asyncio.run(worker.answer({"id": "look", "input": {**fields, "preview": True}}, tell))
    previews = [np.asarray(picture_of(message["preview"])) for message in told if "preview" in message]
    last = np.asarray(picture_of(reply["image"]).resize(previews[-1].shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert psnr(previews[-1].astype(int), last) > 20
    assert asyncio.run(worker.answer({"id": "look", "input": fields}))["image"] == reply["image"]


def test_a_modulation_table_draws_the_same_to_the_bit(warm_workers, net, edges):
    settings = {"QWEN_CONTROLNET": str(net), "QWEN_FALLBACK": "forbid", "QWEN_PRECISION": "bf16"}
    control = {"control_image": as_text(edges), "num_inference_steps": 2}
    computed, _ = drawn(warm_workers(**settings), **control)
    worker = warm_workers(**settings)
    place_by(worker, replace(worker.pipelines.place("generate"), table=True))
    looked_up, _ = drawn(worker, **control)
    assert worker.pipelines.get("generate").table is not None and np.array_equal(looked_up, computed)


@pytest.mark.parametrize("precision", ["fp8", "int8", "nf4"])
def test_quantized_transformers_are_followed_by_it(warm_workers, net, edges, precision):
    # Compared in bfloat16, whose noise is another one than float32's in torch 2.11.
    ours, plain = (
        warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid", QWEN_PRECISION=each)
        for each in (precision, "bf16")
    )
    control = {"control_image": as_text(edges), "num_inference_steps": 2}
    followed, exact = (drawn(each, **control)[0] for each in (ours, plain))
    assert psnr(followed, exact) > psnr(followed, drawn(plain, num_inference_steps=2)[0]) + 6


def test_memory_that_controlled_jobs_lack_changes_nothing_for_plain_ones(warm_workers, net, edges, monkeypatch):
    worker = warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid")
    plain = {"width": 512, "height": 512, "num_inference_steps": 1}
    control = plain | {"control_image": as_text(edges)}
    before = [drawn(worker, **fields)[0] for fields in (plain, control)]
    decoder = worker.pipelines.get("generate").pipe.vae.decoder
    decode, sides = decoder.forward, []

    def short(x, *args, **kwargs):
        sides.append(x.shape[3])
        if x.shape[3] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.27 GiB")
        return decode(x, *args, **kwargs)

    monkeypatch.setattr(decoder, "forward", short)
    for _ in range(2):
        drawn(worker, **control)
    assert max(sides) == 32  # both tried to decode whole
    monkeypatch.undo()
    assert np.array_equal(drawn(worker, **plain)[0], before[0])
    assert not np.array_equal(drawn(worker, **control)[0], before[1])  # which begins in tiles by now


def test_health_names_it(worker, edges):
    drawn(worker, control_image=as_text(edges), num_inference_steps=1)
    told = run(worker, {"task": "health"})["output"]["controlnet"]
    assert told["model"].endswith("org-net") and told["loaded"] and told["device"] == "cpu"
    assert told["parameters"] > 1_000_000


@pytest.mark.parametrize(
    ("settings_of", "least"),
    [
        ({"QWEN_SPEEDUPS": "rotary"}, 60),
        ({"QWEN_SPEEDUPS": "guidance"}, 60),
        pytest.param({"QWEN_SPEEDUPS": "compile,rotary,guidance"}, 45, marks=only_proved),
    ],
)
def test_speed_ups_draw_the_same(warm_workers, worker, net, edges, settings_of, least):
    control = {"control_image": as_text(edges)}
    faster = warm_workers(QWEN_CONTROLNET=str(net), QWEN_FALLBACK="forbid", **settings_of)
    ours, metadata = drawn(faster, **control)
    assert psnr(ours, drawn(worker, **control)[0]) > least and "stood_down" not in metadata


def test_a_stop_is_heard_within_a_step(worker, edges, gate):
    hold = Hold(gate, call=3)
    drawn(worker, control_image=as_text(edges), num_inference_steps=1)
    pipe = worker.pipelines.get("generate").pipe
    hook = pipe.transformer.register_forward_pre_hook(hold)
    fields = {**JOB, "control_image": as_text(edges), "num_inference_steps": 50}
    try:
        asyncio.run(stopped(worker, fields, hold.reached, then=hold.go_on.set))
    finally:
        hook.remove()
    assert hold.calls <= 4  # the second pass of the step, and no other step
    drawn(worker, num_inference_steps=1)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_attention_heads": 8}, "has 8 heads (num_attention_heads), and the transformer of"),
        ({"extra_condition_channels": 4}, "is a ControlNet for inpainting, which takes a mask"),
    ],
)
def test_a_controlnet_of_another_kind_is_refused_before_anything_is_loaded(
    cold_worker, tiny, tmp_path, edges, config, sentence
):
    folder = random_controlnet(tiny, tmp_path / "net", blocks=1, **config)
    worker = cold_worker(QWEN_CONTROLNET=str(folder))
    error = error_of(worker, control_image=as_text(edges))
    assert error.startswith("model_unavailable: the ControlNet cannot be had: ") and sentence in error
    assert str(tmp_path) not in error and run(worker, {"task": "health"})["output"]["models"] == []


def test_what_is_wrong_with_a_control_picture_is_said_of_it(worker):
    assert error_of(worker, control_image="aGVsbG8=").startswith("image_unreadable: control_image")
    assert "control_image[1]" in error_of(worker, control_image=[as_text(Image.new("RGB", (64, 64))), "aGVsbG8="])


def test_a_controlnet_draws_with_guidance_in_a_part_of_the_steps(worker, edges):
    control = {"control_image": as_text(edges)}
    drawn(worker, **control)
    transformer, rows = worker.pipelines.get("generate").pipe.transformer, []
    hook = transformer.img_in.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    for more, passes in (({}, 8), ({"guidance_end": 0.5}, 6), ({"guidance_start": 0.25, "guidance_end": 0.5}, 5)):
        rows.clear()
        _, facts = drawn(worker, **control, **more)
        assert rows == [1] * passes and facts.get("guided_steps", 4) == passes - 4, more
    hook.remove()
    none = {"guidance_start": 0.3, "guidance_end": 0.4}
    assert (drawn(worker, **control, **none)[0] == drawn(worker, **control, guidance_scale=1)[0]).all()
