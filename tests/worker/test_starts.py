"""Task generate with a picture to begin with: `strength` and `mask_image` on the model that draws from prompts."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from qwen_tiny.world import judge, scenes
from qwen_worker.drawing.partial_denoise import PartialDenoise
from qwen_worker.jobs.parsing import parse
from qwen_worker.model_settings import Precision
from qwen_worker.pictures.marks import SOURCE_TYPES, Origin

from ..conftest import as_text, picture_of, place_by, posted, run, warnings_of
from ..support.scene_classifier import FOLDER

SIDE = 256
SCENE = scenes.Scene("red", "circle", "blue", "large", "left", x=0.25, radius=0.23)
SQUARE = "a large red square on the left, on a blue background"
ASKED = {"task": "generate", "prompt": SQUARE, "num_inference_steps": 8, "seed": 3}


@pytest.fixture(scope="module")
def circle():
    return Image.fromarray(scenes.draw(SCENE, SIDE, SIDE))


@pytest.fixture(scope="module")
def mask():
    """Around the circle, on the grid of the tiny checkpoint's tokens."""
    found = Image.new("L", (SIDE, SIDE))
    found.paste(255, (0, 64, 160, 192))
    return found


def small(circle, **fields):
    return {**ASKED, "image": as_text(circle), "width": SIDE, "height": SIDE, **fields}


def furthest(one, other, where=None):
    """The largest difference of a value of a pixel; `where`: the pixels of a mask that are white."""
    difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
    return (difference if where is None else difference[np.asarray(where) > 0]).max()


def generator():
    return torch.Generator().manual_seed(ASKED["seed"])


def test_strength_decides_how_much_of_the_picture_is_left(draw, circle):
    near, facts = draw(**small(circle, strength=0.25))
    far, _ = draw(**small(circle, strength=0.95))
    assert facts["steps"] == 2 and facts["strength"] == 0.25 and facts["dimensions"] == "256x256"
    assert judge.read(near).shape == "circle" and judge.overlap(circle, near) > 0.95
    assert judge.read(far).shape == "square" and judge.read(far).background == "blue"


def test_the_picture_is_that_of_diffusers_image_to_image_class(draw, warm_worker, circle):
    import diffusers

    ours, _ = draw(**small(circle, strength=0.6))
    pipe = warm_worker.pipelines.load("generate").pipe
    stock = diffusers.QwenImageImg2ImgPipeline(**pipe.components)
    stock.set_progress_bar_config(disable=True)
    request = parse(small(circle, strength=0.6), "job")
    # The class draws the source's latents by chance from their distribution; it takes latents too, here their mode.
    clean = PartialDenoise(pipe, circle, None, circle.size, request, generator()).clean
    clean = pipe._unpack_latents(clean, SIDE, SIDE, pipe.vae_scale_factor)[:, :, 0]
    theirs = stock(
        prompt=SQUARE, negative_prompt=" ", true_cfg_scale=4.0, num_inference_steps=8, strength=0.6, width=SIDE,
        height=SIDE, image=clean, generator=generator(),
    ).images[0]  # fmt: skip
    assert furthest(ours, theirs) <= 1


def test_with_a_mask_the_drawing_is_that_of_diffusers_inpainting_class(warm_worker, circle, mask):
    import diffusers

    pipe = warm_worker.pipelines.load("generate").pipe
    stock = diffusers.QwenImageInpaintPipeline(**pipe.components)
    stock.set_progress_bar_config(disable=True)
    call = {"prompt": SQUARE, "negative_prompt": " ", "true_cfg_scale": 4.0, "width": SIDE, "height": SIDE}
    theirs = stock(
        **call, num_inference_steps=8, strength=0.9, image=circle, mask_image=mask, generator=generator()
    ).images[0]
    after = generator()
    torch.randn(1, 16, 1, 16, 16, generator=after)  # by which the class draws the source's latents, before the noise
    request = parse(small(circle, mask_image=as_text(mask), strength=0.9), "job")
    start = PartialDenoise(pipe, circle, mask, circle.size, request, after)
    ours = pipe(
        **call, latents=start.latents, sigmas=start.sigmas,
        callback_on_step_end=lambda _, step, __, tensors: start.after_step(step, tensors),
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    # Up to rounding, and to the source's latents, which the class draws by chance around the mode.
    assert difference.mean() < 0.2 and difference.max() < 12


def test_a_mask_is_repainted_and_all_else_kept_to_the_bit(draw, circle, mask):
    yellow = {"prompt": "a large yellow circle on the left, on a blue background", "mask_image": as_text(mask)}
    picture, facts = draw(**small(circle, **yellow))
    assert judge.read(picture).colour == "yellow" and facts["strength"] == 1.0
    assert furthest(picture, circle, ImageChops.invert(mask)) == 0


def test_each_picture_of_several_is_what_its_seed_draws_alone(ask, draw, circle, mask):
    fields = small(circle, strength=0.7, mask_image=as_text(mask), num_inference_steps=3)
    body = ask(**{**fields, "num_images": 2})
    second, _ = draw(**{**fields, "seed": 4})
    assert picture_of(body["output"]["images"][1]).tobytes() == second.tobytes()


def test_without_a_size_it_has_the_picture_s_proportions_at_a_megapixel(draw):
    source = Image.fromarray(scenes.draw(SCENE, 300, 200))
    picture, facts = draw(**{**ASKED, "num_inference_steps": 2}, image=as_text(source))
    assert picture.size == (1248, 832) and not warnings_of(facts)
    assert (facts["strength"], facts["steps"]) == (0.6, 2)


def test_it_is_drawn_alone_and_alike_where_pictures_share_calls(warm_workers, draw, circle):
    fields = small(circle, strength=0.5, num_inference_steps=4, num_images=2)
    together = posted(warm_workers(QWEN_BATCH=4), **fields)["output"]
    assert together["metadata"]["batch"] == 1
    assert picture_of(together["images"][0]).tobytes() == draw(**fields)[0].tobytes()


def test_a_step_cache_draws_it_too(draw, circle):
    cached, facts = draw(**small(circle, strength=0.8, preset="balanced", num_inference_steps=20))
    assert facts["step_cache"] is True and facts["steps"] == 16
    assert judge.read(cached).colour == "red" and judge.read(cached).background == "blue"


def test_speed_ups_draw_it_alike(cold_worker, draw, circle, mask):
    fields = small(circle, strength=0.8, mask_image=as_text(mask), num_inference_steps=4)
    worker = cold_worker(QWEN_SPEEDUPS="rotary,guidance")
    drawn = posted(worker, **fields)["output"]
    assert "stood_down" not in drawn["metadata"]
    assert furthest(picture_of(drawn["image"]), draw(**fields)[0]) <= 2  # up to rounding


def test_the_modulation_table_draws_it_to_the_bit(cold_worker, circle):
    fields, drawn = small(circle, strength=0.6, num_inference_steps=3), list[str]()
    for table in (True, False):
        worker = cold_worker()
        plan = worker.pipelines.place("generate")
        place_by(worker, dataclasses.replace(plan, precision=Precision.BF16, table=table))
        drawn.append(posted(worker, **fields)["output"]["image"])
        assert (next(iter(worker.pipelines.loaded.values())).table is not None) == table
    assert drawn[0] == drawn[1]


def test_qwen_image_2_1_begins_with_a_picture_too(cold_worker, circle, mask, tmp_path):
    from ..support.random_21 import build

    build(tmp_path / "random-2.1")
    worker = cold_worker(QWEN_IMAGE_MODEL=str(tmp_path / "random-2.1"), QWEN_FALLBACK="forbid")
    fields = small(circle, num_inference_steps=2, strength=0.5, mask_image=as_text(mask))
    output = posted(worker, **fields)["output"]
    assert output["metadata"]["steps"] == 1
    drawn = picture_of(output["image"]).convert("RGB")  # random weights draw transparency inside the mask
    assert furthest(drawn, circle, ImageChops.invert(mask)) == 0


def test_a_rejected_start_never_reaches_the_model(cold_worker):
    worker = cold_worker(QWEN_SAFETY_MODEL=str(FOLDER))
    triangle = Image.fromarray(
        scenes.draw(scenes.Scene("red", "triangle", "blue", "large", "center", radius=0.23), 512, 512)
    )
    for more in ({}, {"expand": 256}):  # what is added around a picture does not hide it from the check
        body = posted(worker, task="generate", prompt="a", image=as_text(triangle), **more)
        assert body["error"].startswith("content_rejected: image is rejected by the endpoint's safety check")
    assert worker.pipelines.loaded == {}


def test_the_file_says_that_a_part_of_it_is_the_caller_s(draw, circle):
    few = {"num_inference_steps": 2}
    for strength, origin in ((0.5, Origin.EDITED), (1, Origin.GENERATED)):
        picture, _ = draw(**small(circle, strength=strength, **few))
        assert SOURCE_TYPES + origin in picture.info["XML:com.adobe.xmp"]


def test_a_stand_in_is_made_of_the_start(cold_worker, circle):
    worker = cold_worker(QWEN_FALLBACK="force")
    output = posted(worker, **small(circle, prompt="sepia"))["output"]
    assert output["metadata"]["backend"] == "pil-fallback"
    assert len(picture_of(output["image"]).getcolors(65536)) < 600  # of a gradient there are thousands


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask_image": "aGk="}, "mask_image is about an input picture, and none is given: send image"),
        ({"expand": 64}, "expand is about an input picture, and none is given: send image"),
        (
            {"images": ["aGk=", "aGk="]},
            "images must hold one image at most for generate, which begins with it, not 2; task edit takes several",
        ),
        ({"image": "aGk=", "strength": 0}, "strength must be a number above 0 and at most 1, not 0"),
        ({"image": "aGk=", "strength": "nan"}, 'strength must be a number above 0 and at most 1, not "nan"'),
        ({"image": "aGk=", "mask_from": "alpha"}, "mask_from says how mask_image is read, and mask_image is not given"),
        ({"image": "aGk=", "size_from": 0}, '"size_from" is not a field of generate (task edit takes it)'),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(cold_worker, fields, sentence):
    error = run(cold_worker(), {"task": "generate", "prompt": "a", **fields})["error"]
    assert error.startswith(f"invalid_input: {sentence}")


def test_a_job_without_a_task_and_with_a_picture_stays_an_edit():
    fields = {"prompt": "a", "image": "aGk="}
    assert parse(fields, "job").task == "edit" and parse({**fields, "task": "generate"}, "job").task == "generate"


def test_strength_without_a_picture_has_no_effect_and_strength_1_leaves_nothing_of_one():
    said = []
    parse({"prompt": "a", "strength": 0.5}, "job", warn=said.append)
    parse({"task": "generate", "prompt": "a", "image": "aGk=", "denoise": 1}, "job", warn=said.append)
    assert said == [
        "strength 0.5 has no effect without an input picture",
        "denoise 1 leaves nothing of the input picture: the prompt alone is drawn",
    ]
