"""Qwen-Image-2.1 whole, with random weights: transparency in and out, ten pictures, its sizes, its LoRAs.

A random VAE draws transparency everywhere: what is transparent is not meant, and has to come through all the same.
"""

import dataclasses
import functools
import json

import numpy as np
import openai
import pytest
import torch
from PIL import Image, PngImagePlugin

from qwen_worker.jobs.few_step_schedules import viggle_sigmas
from qwen_worker.jobs.request import TRANSPARENT_INSTRUCTION

from ..conftest import as_text, environment_of, only_proved, picture_of, run, warnings_of
from ..support.local_endpoint import LocalEndpoint
from ..support.lora_files import matrices, write
from ..support.random_21 import build, stock_pipeline
from ..support.scene_classifier import FOLDER as CLASSIFIER

PROMPT = "a red circle"
SMALL = {"prompt": PROMPT, "width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 1, "seed": 1}
LAYERS = [
    f"transformer_blocks.1.{layer}"
    for layer in ("attn.to_q", "attn.to_out.0", "img_mlp.proj", "img_mlp.gate_layer", "img_mlp.out")
]


@pytest.fixture(scope="module")
def two_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen-image-2.1"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def settings_21(two_one):
    return {"QWEN_IMAGE_MODEL": str(two_one), "QWEN_EDIT_MODEL": str(two_one), "QWEN_FALLBACK": "forbid"}


@pytest.fixture(scope="module")
def worker(warm_workers, settings_21, lora_folder):
    return warm_workers(
        **settings_21, QWEN_LORA_ROOTS=(lora_folder,), QWEN_SAFETY_MODEL=str(CLASSIFIER), QWEN_SAFETY_THRESHOLD=1
    )


@pytest.fixture(scope="module")
def stock(two_one):
    return stock_pipeline(two_one)


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


def output_of(worker, **fields):
    reply = run(worker, SMALL | fields)
    assert "error" not in reply, reply.get("error")
    assert reply["output"]["metadata"]["backend"] == "qwen-image"
    return reply["output"]


def drawn(worker, **fields):
    return picture_of(output_of(worker, **fields)["image"])


def refused(worker, **fields):
    reply = run(worker, SMALL | fields)
    assert "error" in reply, reply["output"]["metadata"]
    return reply["error"]


def alpha_of(picture):
    return np.asarray(picture.getchannel("A"))


def by_stock(stock, prompt=PROMPT, seed=1, steps=2, **more):
    sizes = {"width": 256, "height": 256} | more
    generator = torch.Generator("cpu").manual_seed(seed)
    return stock(prompt, num_inference_steps=steps, generator=generator, **sizes).images[0]


def cut_out(size=256):
    """A grey disc that fades out, with colours beneath what is transparent."""
    across, down = np.mgrid[0:size, 0:size]
    alpha = np.clip(510 * (1 - np.hypot(across - size / 2, down - size / 2) / (size / 2)), 0, 255)
    colours = np.stack([across % 256, down % 256, np.full_like(across, 90)], -1)
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8), "RGBA")


# Transparency out


@pytest.mark.parametrize("encoding", [{}, {"output_format": "webp"}, {"output_format": "webp", "output_quality": 60}])
def test_transparency_reaches_the_caller_as_the_pipeline_draws_it(worker, stock, encoding):
    output = output_of(worker, background="transparent", **encoding)
    instruction = TRANSPARENT_INSTRUCTION.format(prompt=f"{PROMPT}.")
    expected, picture = by_stock(stock, instruction), picture_of(output["image"])
    assert expected.mode == picture.mode == "RGBA"
    assert (alpha_of(picture) == alpha_of(expected)).all()
    if "output_quality" not in encoding:
        assert picture.tobytes() == expected.tobytes()
    facts = output["metadata"]
    assert (facts["background"], facts["prompt"], facts["instruction"]) == ("transparent", PROMPT, instruction)
    assert not warnings_of(facts)


def test_auto_keeps_what_is_transparent_and_opaque_puts_it_on_white(worker, stock):
    expected = by_stock(stock)
    wishes = {}, {"background": "opaque"}, {"output_format": "jpeg"}
    kept, opaque, jpeg = (drawn(worker, **fields) for fields in wishes)
    assert kept.tobytes() == expected.tobytes()
    white = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected).convert("RGB")
    assert opaque.mode == "RGB" and opaque.tobytes() == white.tobytes()
    assert jpeg.mode == "RGB" and "background" not in output_of(worker, output_format="jpeg")["metadata"]
    assert np.abs(np.asarray(jpeg, float) - np.asarray(white, float)).mean() < 8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"output_format": "jpeg"},
            "background 'transparent' is not for output_format jpeg, which has no transparency",
        ),
        ({"task": "background_replacement", "image": "aGk="}, "is not for background_replacement, whose prompt"),
        ({"background": "see-through"}, "background must be 'auto', 'transparent' or 'opaque', not \"see-through\""),
    ],
)
def test_a_background_that_cannot_be_is_refused(worker, fields, words):
    error = refused(worker, **{"background": "transparent", **fields})
    assert error.startswith("invalid_input: ") and words in error


def test_a_model_without_transparency_refuses_it_before_it_is_loaded(cold_worker, scene):
    worker = cold_worker(QWEN_FALLBACK="forbid")
    for fields in ({}, {"image": as_text(scene)}):
        error = refused(worker, background="transparent", **fields)
        assert error.startswith("invalid_input: background must be 'auto' or 'opaque' for this checkpoint, not 'tran")
    assert not worker.pipelines.loaded and not worker.pipelines.report()


def test_all_that_is_done_with_a_picture_is_done_with_a_transparent_one(worker):
    output = output_of(
        worker, background="transparent", num_images=2, num_inference_steps=8, preview=True, embed_parameters=True
    )
    facts, pictures = output["metadata"], [picture_of(text) for text in output["images"]]
    assert [picture.mode for picture in pictures] == ["RGBA", "RGBA"] and facts["has_nsfw_concepts"] == [False, False]
    for picture in pictures:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert "trainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
        assert json.loads(picture.text["parameters_json"])["num_inference_steps"] == 8
    again = drawn(worker, background="transparent", num_inference_steps=8, seed=2)
    assert again.tobytes() == pictures[1].tobytes()


# Transparency in


def test_transparency_of_an_input_picture_reaches_the_model(worker, stock):
    picture = cut_out()
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    fields = {"width": 512, "height": 512}
    whole, flat = (drawn(worker, image=as_text(one), **fields) for one in (picture, white))
    expected = by_stock(stock, image=picture, output_resolution=512, width=512, height=512)
    assert whole.tobytes() == expected.tobytes() != flat.tobytes()


def test_a_model_without_transparency_sees_the_picture_on_white_as_before(ask):
    picture = cut_out()
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    fields = SMALL | {"draw_size": "asked"}
    replies = [ask(**fields, image=as_text(one), _job_id="same")["output"] for one in (picture, white)]
    assert replies[0]["image"] == replies[1]["image"]


def test_outside_a_mask_transparency_and_what_it_hides_come_back_exactly(worker):
    picture = cut_out(320)
    mask = Image.new("L", picture.size)
    mask.paste(255, (100, 100, 200, 200))
    fields = {"image": as_text(picture), "mask_image": as_text(mask), "width": 320, "height": 320}
    result = drawn(worker, **fields, output_format="webp")
    outside = np.asarray(mask) == 0
    assert result.mode == "RGBA" and result.size == picture.size
    assert (np.asarray(result)[outside] == np.asarray(picture)[outside]).all()
    assert (np.asarray(result)[150, 150] != np.asarray(picture)[150, 150]).any()


def test_an_opaque_picture_with_a_mask_stays_opaque_outside_of_it(worker):
    picture = cut_out(320).convert("RGB")
    mask = Image.new("L", picture.size)
    mask.paste(255, (100, 100, 200, 200))
    fields = {"image": as_text(picture), "mask_image": as_text(mask), "width": 320, "height": 320}
    kept, opaque = drawn(worker, **fields), drawn(worker, **fields, background="opaque")
    outside = np.asarray(mask) == 0
    assert (
        kept.mode == "RGBA" and (alpha_of(kept)[outside] == 255).all() and alpha_of(kept)[110:190, 110:190].min() < 255
    )
    for result in (kept.convert("RGB"), opaque):
        assert (np.asarray(result)[outside] == np.asarray(picture)[outside]).all()


# Pictures and sizes


def test_ten_pictures_are_taken_and_eleven_refused(worker):
    texts = [as_text(Image.new("RGB", (64, 64), (20 * number, 90, 200 - 20 * number))) for number in range(10)]
    fields = {"width": 512, "height": 512, "num_inference_steps": 1, "prompt": "<image10> beside <image1>"}
    result, turned = (drawn(worker, images=images, **fields) for images in (texts, texts[::-1]))
    assert result.size == (512, 512) and result.tobytes() != turned.tobytes()
    error = refused(worker, images=[*texts, texts[0]])
    assert error.startswith("invalid_input: images must be a list of 1 to 10 images, not ")


def test_other_checkpoints_keep_their_own_limits_and_name_both_numbers(cold_worker, scene):
    worker = cold_worker(QWEN_FALLBACK="forbid")
    assert refused(worker, images=[as_text(scene)] * 10) == (
        "invalid_input: images must hold at most 1 for this checkpoint, not 10"
    )
    for fields in ({"width": 2752, "height": 1536}, {"width": None, "height": None, "size": "2752x1536"}):
        for task in ({}, {"image": as_text(scene)}):
            assert refused(worker, **fields, **task) == (
                "invalid_input: width must be at most 2048 for this checkpoint, not 2752"
            )
    assert not worker.pipelines.loaded
    assert "from 256 to 2752 and a multiple of 16, not 2768" in refused(worker, width=2768)


@pytest.mark.parametrize(
    ("width", "height", "drawn_size"),
    [(544, 544, "544x544"), (256, 256, "512x512")],  # below 512 x 512 a model sees too little
)
def test_an_edit_looks_at_its_picture_in_the_size_that_is_asked_for(worker, scene, width, height, drawn_size):
    facts = output_of(worker, image=as_text(scene), width=width, height=height, num_inference_steps=1)["metadata"]
    assert facts["dimensions"] == f"{width}x{height}"
    assert facts.get("drawn_dimensions", facts["dimensions"]) == drawn_size


def test_references_are_looked_at_in_at_most_the_pixels_that_a_job_says(worker, stock, scene):
    """The drawing keeps its size, and is what the pipeline draws that is told so by its own argument."""
    pictures = [scene, scene.transpose(Image.Transpose.ROTATE_90).resize((300, 200))]
    fields = {"images": [as_text(picture) for picture in pictures], "width": 768, "height": 768}
    result = output_of(worker, **fields, reference_pixels=600**2)
    sides = {"width": 768, "height": 768, "image": pictures, "true_cfg_scale": 1}
    capped, whole = (by_stock(stock, output_resolution=side, **sides) for side in (600, 768))
    assert result["metadata"]["dimensions"] == "768x768" and "drawn_dimensions" not in result["metadata"]
    found = np.asarray(picture_of(result["image"]).convert("RGB"), int)
    distances = [np.abs(found - np.asarray(picture.convert("RGB"), int)).max() for picture in (capped, whole)]
    assert distances[0] <= 1 < distances[1], distances
    error = refused(worker, **fields, reference_pixels=500**2)
    assert "reference_pixels must be a whole number from 262144 to 4326400, not 250000" in error


def test_a_pipeline_that_cannot_be_told_the_size_of_references_refuses_it_before_it_is_loaded(cold_worker, scene):
    worker = cold_worker(QWEN_FALLBACK="forbid")
    error = refused(worker, image=as_text(scene), reference_pixels=512**2)
    assert error.startswith("invalid_input: reference_pixels is not for this checkpoint")
    assert not worker.pipelines.loaded


@only_proved
def test_the_widest_size_is_drawn(cold_worker, settings_21):
    fields = {"width": 2752, "height": 1536, "num_inference_steps": 1}
    picture = drawn(
        cold_worker(**settings_21), background="transparent", output_format="webp", output_quality=60, **fields
    )
    assert (picture.size, picture.mode) == ((2752, 1536), "RGBA")


@only_proved
def test_an_edit_of_the_widest_size_sees_its_picture_in_it(cold_worker, settings_21, scene):
    fields = {"width": 2752, "height": 1536, "num_inference_steps": 1, "output_format": "jpeg"}
    facts = output_of(cold_worker(**settings_21), image=as_text(scene.resize((2752, 1536))), **fields)["metadata"]
    assert facts["dimensions"] == "2752x1536" and "drawn_dimensions" not in facts


def test_the_prefix_cache_is_given_up_before_the_picture_is_decoded(worker, stock, scene):
    """Counted is what any cache of the library holds while the VAE decodes."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVLayerCache

    from qwen_worker.drawing.prefix_cache import watching_prefixes

    held, stored, layers = [], [], []
    store = QwenImage21KVLayerCache.store
    hook = stock.vae.decoder.register_forward_pre_hook(lambda *_: held.append(sum(one.k is not None for one in layers)))

    def remembered(self, k, v):
        layers.append(self)
        stored.append(k.nbytes)
        store(self, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QwenImage21KVLayerCache, "store", remembered)
        picture = scene.resize((256, 256))
        plain = by_stock(stock, image=picture, steps=2, output_resolution=256)
        assert len(stored) == 2 and held == [2]
        with watching_prefixes(stock) as empty:
            end = functools.partial(after_last, empty)
            emptied = by_stock(stock, image=picture, steps=2, output_resolution=256, callback_on_step_end=end)
        assert held == [2, 2]  # those of the first call, which nobody has emptied
    hook.remove()
    assert plain.tobytes() == emptied.tobytes() and not stock.transformer._forward_pre_hooks


def after_last(empty, pipe, step, _timestep, tensors):
    if step + 1 == pipe.num_timesteps:
        empty()
    return tensors


def test_a_job_without_room_for_a_prefix_is_drawn_after_two_that_memory_was_short_for(worker, monkeypatch, request):
    """The third job's plan has no prefix cache, and so no attempt of its own without one."""
    from qwen_worker.memory.footprint import Plan

    output_of(worker)
    loaded = worker.pipelines.get("generate")
    request.addfinalizer(loaded.shortages.clear)

    def short_of_memory(_module, _arguments, named):
        if named.get("kv_cache") is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = loaded.pipe.transformer.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    request.addfinalizer(hook.remove)
    pictures = [drawn(worker) for _ in range(2)]
    assert [shortage.jobs for shortage in loaded.shortages.values()] == [2]
    planned = Plan.for_guidance
    monkeypatch.setattr(
        Plan, "for_guidance", lambda self, *facts: dataclasses.replace(planned(self, *facts), prefix_cache=False)
    )
    assert drawn(worker).tobytes() == pictures[0].tobytes()


def test_guidance_in_a_part_of_the_steps_reads_the_caches_of_both_passes(worker, monkeypatch):
    """The first step fills them, also where it has no guidance itself."""
    passes = []
    output_of(worker)
    pipe = worker.pipelines.get("generate").pipe
    stock = type(pipe.transformer).forward
    monkeypatch.setattr(
        type(pipe.transformer), "forward", lambda *args, **named: passes.append(named) or stock(*args, **named)
    )
    job = {"num_inference_steps": 4, "guidance_scale": 4, "negative_prompt": "dark"}
    pictures = []
    for more, count in (({}, 8), ({"guidance_start": 0.5}, 7), ({"guidance_end": 0.5}, 6), ({"guidance_end": 0.2}, 5)):
        passes.clear()
        output = output_of(worker, **job, **more)
        assert len(passes) == count, more
        pictures.append(output["image"])
    assert len(set(pictures)) == 4
    passes.clear()
    assert output_of(worker, **{**job, "guidance_scale": 1})["image"] == pictures[3] and len(passes) == 4


# LoRAs


@pytest.mark.parametrize("form", ["diffusers", "ai-toolkit, ComfyUI", "kohya, musubi", "lightning"])
def test_a_lora_in_its_layout_changes_its_own_picture_alone(worker, stock, lora_folder, form):
    path = write(lora_folder / "two-one.safetensors", matrices(stock.transformer, [*LAYERS, "txt_in.in_layer"]), form)
    plain = output_of(worker)["image"]
    changed = output_of(worker, loras=[{"path": path.name, "scale": 2}])
    assert changed["image"] != plain and changed["metadata"]["loras"][0]["strength"] == 2
    assert output_of(worker)["image"] == plain


def test_the_endpoint_s_own_lora_is_part_of_every_picture(cold_worker, settings_21, worker, stock, lora_folder):
    path = write(lora_folder / "every.safetensors", matrices(stock.transformer, LAYERS))
    job = {"loras": [{"path": path.name, "scale": 2}]}
    own = cold_worker(**settings_21, QWEN_LORAS=json.dumps([{"path": str(path), "scale": 2}]))
    assert output_of(own)["image"] == output_of(worker, **job)["image"] != output_of(worker)["image"]


def test_a_lora_of_the_other_architecture_is_refused_by_name_before_a_model_is_loaded(
    cold_worker, settings_21, stock, lora_folder, warm_worker
):
    from qwen_worker.lora.architectures import IMAGE_20B

    run(warm_worker, SMALL)  # for the shapes of its layers
    other = warm_worker.pipelines.get("generate").pipe.transformer
    layers = [f"transformer_blocks.0.{layer}" for layer in IMAGE_20B.block_layers if "_mod" not in layer]
    write(lora_folder / "two-one.safetensors", matrices(stock.transformer, LAYERS))
    write(lora_folder / "old.safetensors", matrices(other, layers))
    write(lora_folder / "attention.safetensors", matrices(stock.transformer, LAYERS[:1]))
    newer, older = (cold_worker(**more, QWEN_LORA_ROOTS=(lora_folder,)) for more in (settings_21, {}))
    for worker, name, words in (
        (newer, "old", "qwen-image-2.1: it is one for the 20B Qwen-Image models; 8 of 12 layers do not match: "),
        (older, "two-one", "tiny-qwen-image/generate: it is one for Qwen-Image-2.1; 3 of 5 layers do not match: "),
        (older, "attention", "tiny-qwen-image/generate; 1 of 1 layers do not match: transformer_blocks.1.attn.to_q is"),
    ):
        error = refused(worker, loras=[{"path": f"{name}.safetensors"}])
        assert error.startswith("invalid_input: loras[0] is not made for ") and words in error, error
        assert not worker.pipelines.loaded


@pytest.mark.parametrize(
    ("name", "sigmas"), [("Qwen-Image-2.1-Lightning-4steps", None), ("2.1-viggle-turbo-v0.3-6step", viggle_sigmas(6))]
)
def test_fast_draws_on_the_schedule_of_its_lora(cold_worker, settings_21, stock, lora_folder, name, sigmas):
    weights = matrices(stock.transformer, LAYERS, strength=1)
    path = write(lora_folder / f"{name}.safetensors", weights)
    worker = cold_worker(**settings_21, QWEN_IMAGE_FAST_LORA=str(path))
    fields = {"preset": "fast", "num_inference_steps": None, "guidance_scale": None}
    output = output_of(worker, **fields)
    steps = output["metadata"]["steps"]
    assert (steps, output["metadata"]["guidance_scale"]) == (len(sigmas or range(4)), 1)
    scheduler, before = type(stock.scheduler), stock.scheduler
    stock.scheduler = scheduler.from_config(before.config, shift_terminal=None)
    stock.load_lora_weights(str(path))
    try:
        expected = by_stock(stock, steps=steps, sigmas=sigmas)
    finally:
        stock.unload_lora_weights()
        stock.scheduler = before
    difference = np.abs(np.asarray(picture_of(output["image"]), int) - np.asarray(expected, int))
    assert difference.max() <= 2  # of 255: the two add the matrices in another order
    pipe = worker.pipelines.get("generate").pipe
    assert pipe.config.sample_sigmas is None and pipe.scheduler.config.shift_terminal == 0.02


# What is told of it, and the whole way


def test_openai_s_client_gets_transparency_through_the_sdk_s_loop(tiny, settings_21, tmp_path):
    environment = environment_of(tiny, tmp_path, **settings_21, QWEN_PRELOAD="generate")
    with LocalEndpoint(environment) as endpoint:
        endpoint.wait_for(lambda: endpoint.said("worker-1 ready after"))
        with openai.OpenAI(
            api_key="any", base_url=f"{endpoint.address}/v2/local/openai/v1", max_retries=0, timeout=600
        ) as client:
            more = {"num_inference_steps": 2, "guidance_scale": 1, "seed": 3}
            result = client.images.generate(
                prompt=PROMPT, size="256x256", background="transparent", output_format="webp", extra_body=more
            )
            assert picture_of(result.data[0].b64_json).mode == "RGBA"
            pictures = [as_text(cut_out(64)), *[as_text(cut_out(64).convert("RGB"))] * 9]
            body = more | {"images": pictures, "size": "256x256"}
            body = {"prompt": PROMPT, **body}
            result = client.post("/images/edits", body=body, cast_to=openai.types.ImagesResponse)
            assert picture_of(result.data[0].b64_json).size == (256, 256)
            with pytest.raises(openai.BadRequestError, match="is not for output_format jpeg"):
                client.images.generate(prompt=PROMPT, background="transparent", output_format="jpeg")
