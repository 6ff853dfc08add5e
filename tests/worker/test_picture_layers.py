"""Task layers, as whole jobs on the tiny layered checkpoint: what the layers show, what is refused, what stands in."""

import base64
import io
import json
import shutil
from random import Random

import numpy as np
import pytest
from PIL import Image

from qwen_tiny import LORA
from qwen_tiny import layers as tiny_layers
from qwen_tiny.world import judge, scenes

from ..conftest import ROOT, as_text, only_proved, run, warnings_of

STEPS = 6
STYLE = "style.safetensors"
RESULTS = ROOT / "benchmarks/results/layers.json"


@pytest.fixture(scope="session")
def lora_folder(tiny, tmp_path_factory):
    """Holds the tiny LoRA by a name that says nothing of few steps."""
    folder = tmp_path_factory.mktemp("loras")
    shutil.copy(tiny / LORA, folder / STYLE)
    return folder


@pytest.fixture(scope="session")
def layered_worker(warm_workers, tiny, lora_folder):
    layered = str(tiny / "layered")
    return warm_workers(QWEN_LAYERED_MODEL=layered, QWEN_FALLBACK="forbid", QWEN_LORA_ROOTS=(lora_folder,))


@pytest.fixture
def take_apart(layered_worker):
    """take_apart(picture, **fields): the layers and the metadata of a job that must succeed."""

    def taken(picture, **fields):
        body = run(layered_worker, layers_job(picture, **fields))
        assert "error" not in body, body["error"]
        return layers_in(body), body["output"]["metadata"]

    return taken


def layers_job(picture, **fields):
    job = {"task": "layers", "image": as_text(picture), "prompt": "a shape", "num_layers": 2, "seed": 7,
           "guidance_scale": 1, "num_inference_steps": STEPS}  # fmt: skip
    return {name: value for name, value in (job | fields).items() if value is not None}


def layers_in(body):
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["output"]["images"]]


def scene_picture(number, side=640):
    scene = scenes.random_scene(Random(f"layers {number}"))
    return scene, Image.fromarray(scenes.draw(scene, side, side))


def on_grey(layer):
    return Image.alpha_composite(Image.new("RGBA", layer.size, "grey"), layer)


def stock_layers(pipe, picture, **options):
    """The layers as the stock pipeline gives them."""
    import torch

    call = {"layers": 2, "resolution": 640, "num_inference_steps": STEPS, "true_cfg_scale": 1.0, "prompt": "a shape"}
    generator = torch.Generator().manual_seed(7)
    return pipe(image=picture.convert("RGBA"), generator=generator, **call | options).images[0]


def measured(worker, number):
    """How one scene's layers came out, and the layers."""
    scene, picture = scene_picture(number)
    body = run(worker, layers_job(picture))
    layers, metadata = layers_in(body), body["output"]["metadata"]
    pipe = worker.pipelines.get("layers").pipe
    return {
        **tiny_layers.judge_layers(scene, layers),
        "read": [str(reading) for reading in judge.read_layers(layers)],
        "scene": str(scene),
        "recomposition_db": metadata["recomposition_db"],
        "vae_db": round(tiny_layers.psnr(tiny_layers.round_trip(pipe, picture), picture), 2),
    }, layers


def test_subject_and_background_come_apart_and_give_the_picture_again(layered_worker):
    found, layers = measured(layered_worker, 0)
    assert found["background"] and found["subject"], found
    assert found["recomposition_db"] >= found["vae_db"] - tiny_layers.MOST_LOST, found
    stock = stock_layers(layered_worker.pipelines.get("layers").pipe, scene_picture(0)[1])
    assert all(np.array_equal(np.asarray(ours), np.asarray(one)) for ours, one in zip(layers, stock, strict=True))


@only_proved
def test_the_layers_of_twenty_scenes_come_apart_in_ninety_per_cent(layered_worker):
    rows = [measured(layered_worker, number)[0] for number in range(20)]
    apart = sum(row["background"] and row["subject"] for row in rows)
    near = sum(row["recomposition_db"] >= row["vae_db"] - tiny_layers.MOST_LOST for row in rows)
    totals = {"scenes": len(rows), "apart": apart, "within 3 dB of the VAE": near, "steps": STEPS}
    RESULTS.write_text(json.dumps({"benchmark": "layers", **totals, "rows": rows}, indent=2) + "\n")
    assert apart >= 18 and near == len(rows)


def test_the_figure_in_the_metadata_is_that_of_the_layers_in_the_reply(take_apart):
    _, picture = scene_picture(1)
    layers, metadata = take_apart(picture, num_inference_steps=2, num_layers=3)
    assert [layer.mode for layer in layers] == ["RGBA"] * 3 and metadata["num_layers"] == 3
    assert metadata["recomposition_db"] == pytest.approx(
        tiny_layers.psnr(tiny_layers.laid_over(layers), picture), abs=0.01
    )
    assert metadata["dimensions"] == "640x640" and metadata["seeds"] == [7] and not warnings_of(metadata)


def test_layers_have_the_picture_s_proportions_and_webp_keeps_them_to_the_bit(take_apart):
    picture = scene_picture(2)[1].resize((300, 200))
    pngs, metadata = take_apart(picture, num_inference_steps=1)
    webps, _ = take_apart(picture, num_inference_steps=1, output_format="webp")
    assert metadata["dimensions"] == "768x512"
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(pngs, webps, strict=True))


def test_the_step_cache_predicts_steps_of_layers_too(take_apart):
    _, picture = scene_picture(6)
    exact, _ = take_apart(picture, num_inference_steps=8, preset="quality")
    cached, metadata = take_apart(picture, num_inference_steps=8, preset="balanced")
    assert metadata["step_cache"] is True
    near = [tiny_layers.psnr(on_grey(one), on_grey(other)) for one, other in zip(exact, cached, strict=True)]
    assert all(25 < db < 99 for db in near), near


def test_a_lora_draws_layers_as_diffusers_own_pipeline_does(take_apart, layered_worker, lora_folder):
    _, picture = scene_picture(7)
    plain, _ = take_apart(picture, num_inference_steps=1)
    ours, metadata = take_apart(picture, num_inference_steps=1, loras=[{"path": STYLE, "scale": 0.8}])
    assert metadata["loras"][0]["scale"] == 0.8
    pipe = layered_worker.pipelines.get("layers").pipe
    scheduler = pipe.scheduler
    pipe.load_lora_weights(lora_folder, weight_name=STYLE, adapter_name="style")
    try:
        pipe.set_adapters("style", 0.8)
        pipe.scheduler = type(scheduler).from_config(scheduler.config, shift_terminal=None)  # as of one step alone
        stock = stock_layers(pipe, picture, num_inference_steps=1)
    finally:
        pipe.unload_lora_weights()
        pipe.scheduler = scheduler
    assert all(abs(np.subtract(one, other, dtype=int)).max() <= 2 for one, other in zip(ours, stock, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(ours, plain, strict=True))


@only_proved
def test_layers_of_the_larger_resolution_are_drawn(take_apart):
    layers, metadata = take_apart(scene_picture(8, side=1024)[1], resolution=1024, num_inference_steps=2)
    assert [layer.size for layer in layers] == [(1024, 1024)] * 2 and metadata["dimensions"] == "1024x1024"


def test_without_a_prompt_the_model_describes_the_picture_itself(layered_worker, take_apart):
    _, picture = scene_picture(3)
    _, metadata = take_apart(picture, prompt=None, num_inference_steps=1)
    pipe = layered_worker.pipelines.get("layers").pipe
    told = pipe.get_image_caption(picture.convert("RGBA"), use_en_prompt=True, device="cpu")
    assert metadata["prompt"] == "" and metadata["instruction"] == told


def test_a_preview_of_layers_gives_a_warning(take_apart):
    _, metadata = take_apart(scene_picture(4)[1], preview=True, num_inference_steps=1)
    assert any("preview" in warning for warning in metadata["warnings"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_layers": 11}, "num_layers must be a whole number from 2 to 10, not 11"),
        ({"num_layers": 1}, "num_layers must be a whole number from 2 to 10, not 1"),
        ({"resolution": 800}, "resolution must be 640 or 1024, not 800"),
        ({"output_format": "jpeg"}, "output_format jpeg has no transparency"),
        ({"mask_image": "https://example.com/mask.png"}, "mask_image is not taken by layers; task edit takes it"),
        ({"image": None, "images": ["https://example.com/1.png"] * 2}, "task layers takes one image, not 2"),
        ({"width": 512}, "width is not taken by layers"),
        ({"num_images": 2}, "num_images must be 1: num_layers is the number of layers, not 2"),
        ({"preset": "fast"}, "preset 'fast' is not served for layers here"),
        ({"image": None}, "exactly one of image, image_url, images must be given, not none"),
    ],
)
def test_what_layers_do_not_take_is_refused_by_name(layered_worker, fields, sentence):
    body = run(layered_worker, layers_job(Image.new("RGB", (64, 64)), **fields))
    assert f"invalid_input: {sentence}" in body["error"]


def test_other_tasks_have_no_layers(layered_worker):
    body = run(layered_worker, {"prompt": "a red circle", "num_layers": 4})
    assert "num_layers is not here: task layers takes it" in body["error"]


def test_an_endpoint_without_a_layered_model_does_not_serve_the_task(cold_worker):
    body = run(cold_worker(), layers_job(Image.new("RGB", (64, 64))))
    assert "invalid_input: task layers is not served by this endpoint, which serves generate" in body["error"]


@pytest.mark.parametrize(("setting", "folder", "fields"), [
    ("QWEN_LAYERED_MODEL", "edit", {"task": "layers"}),
    ("QWEN_EDIT_MODEL", "layered", {"task": "edit"}),
    ("QWEN_IMAGE_MODEL", "layered", {"task": "generate", "image": None}),
])  # fmt: skip
def test_a_checkpoint_of_another_kind_is_refused_by_its_class(cold_worker, tiny, setting, folder, fields):
    worker = cold_worker(**{"QWEN_FALLBACK": "forbid", setting: str(tiny / folder)})
    job = {"prompt": "a shape", "image": as_text(Image.new("RGB", (64, 64)))} | fields
    body = run(worker, {name: value for name, value in job.items() if value is not None})
    kind = "QwenImageEditPipeline" if folder == "edit" else "QwenImageLayeredPipeline"
    assert (
        "model_unavailable" in body["error"] and f"is a {kind}, which does not serve {fields['task']}" in body["error"]
    )


def test_a_stand_in_for_layers_is_the_marked_picture_below_empty_layers(cold_worker, tiny):
    worker = cold_worker(QWEN_LAYERED_MODEL=str(tiny / "layered"), QWEN_FALLBACK="force")
    _, picture = scene_picture(5)
    body = run(worker, layers_job(picture, num_layers=3))
    layers = layers_in(body)
    assert body["output"]["metadata"]["backend"] == "pil-fallback" and len(layers) == 3
    assert "recomposition_db" not in body["output"]["metadata"]
    assert [layer.getchannel("A").getextrema() for layer in layers] == [(255, 255), (0, 0), (0, 0)]
    assert np.asarray(layers[0].convert("RGB")).tobytes() != picture.tobytes()  # the band is on it


def test_health_names_the_third_model_and_an_endpoint_may_serve_it_alone(cold_worker, tiny):
    worker = cold_worker(QWEN_LAYERED_MODEL=str(tiny / "layered"), QWEN_TASKS="layers")
    assert list(run(worker, {"task": "health"})["output"]["presets"]) == ["layers"]
    assert (
        "task edit is not served by this endpoint, which serves layers"
        in run(worker, {"prompt": "red", "image": "https://example.com/1.png"})["error"]
    )
