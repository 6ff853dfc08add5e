"""`strength` and `mask_image`: the schedule's tail, the noise of a full run, the pixels outside the mask."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from qwen_tiny.world import judge, scenes
from qwen_worker.drawing.partial_denoise import PartialDenoise, tail
from qwen_worker.jobs.parsing import parse

from ..conftest import as_text, only_proved, run

SIZE = (256, 256)
EDIT = {"prompt": "make the background green", "num_inference_steps": 4, "seed": 3}


def request(**fields):
    return parse({**EDIT, "image": "aGk=", **fields}, "job")


@pytest.fixture
def pipe(warm_worker):
    return warm_worker.pipelines.load("edit").pipe


@pytest.fixture
def square(scene):
    return scene.resize(SIZE)


@pytest.fixture
def mask():
    found = Image.new("L", SIZE, 0)
    found.paste(255, (64, 64, 192, 160))
    return found


def partial(pipe, square, mask=None, **fields):
    return PartialDenoise(pipe, square, mask, SIZE, request(**fields), torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [(10, 0.3, 3), (10, 0.31, 4), (50, 1.0, 50), (50, 0.01, 1), (100, 0.07, 7), (1, 0.5, 1)],
)
def test_strength_runs_the_last_part_of_the_steps(pipe, steps, strength, kept):
    assert len(tail(pipe, request(num_inference_steps=steps, strength=strength))) == kept


def test_the_tail_is_the_end_of_the_very_schedule_of_a_full_run(pipe, square):
    full, part = (
        partial(pipe, square, num_inference_steps=10),
        partial(pipe, square, num_inference_steps=10, strength=0.4),
    )
    assert torch.allclose(part.shifted, full.shifted[-5:], atol=1e-6) and full.shifted[-1] == 0
    calls = []
    pipe(
        square, "a", num_inference_steps=10, width=256, height=256, true_cfg_scale=1.0,
        callback_on_step_end=lambda one, step, timestep, tensors: calls.append(one.scheduler.sigmas.clone()) or tensors,
    )  # fmt: skip
    assert torch.allclose(calls[0], full.shifted, atol=1e-6)


def test_at_strength_1_the_start_is_the_noise_that_the_pipeline_would_draw(pipe, square, mask):
    start = partial(pipe, square, mask)
    own, _ = pipe.prepare_latents(
        None,
        1,
        pipe.transformer.config.in_channels // 4,
        256,
        256,
        torch.float32,
        "cpu",
        torch.Generator().manual_seed(3),
    )
    assert torch.equal(start.latents, own)


def test_a_low_strength_starts_near_the_source(pipe, square):
    near, far = (partial(pipe, square, num_inference_steps=10, strength=value) for value in (0.3, 0.9))
    assert (near.latents - near.clean).norm() < 0.5 * (far.latents - far.clean).norm()


def test_the_source_s_latents_are_those_that_the_pipeline_encodes(pipe, square):
    pixels = pipe.image_processor.preprocess(square, 256, 256).unsqueeze(2)
    with torch.no_grad():
        _, own = pipe.prepare_latents(pixels, 1, 16, 256, 256, torch.float32, "cpu", torch.Generator())
    assert torch.equal(partial(pipe, square).clean, own)


def test_a_step_puts_the_noised_source_back_outside_the_mask(pipe, square, mask):
    start = partial(pipe, square, mask)
    drawn = torch.full_like(start.latents, 7.0)
    kept = start.after_step(3, {"latents": drawn})["latents"]
    assert torch.equal(kept[~start.repaint], start.clean[~start.repaint])  # after the last step: the clean source
    assert (kept[start.repaint] == 7).all()
    side = 256 // pipe.vae_scale_factor // 2
    # 64..192 by 64..160 pixels, in tokens of 32: columns 2 to 5, rows 2 to 4.
    touched = start.repaint[0].any(dim=1).view(side, side).nonzero()
    assert touched.min(dim=0).values.tolist() == [2, 2] and touched.max(dim=0).values.tolist() == [4, 5]


def distance(a, b):
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean)


def test_strength_0_3_stays_nearer_the_source_than_0_9(draw, square):
    fields = {
        **EDIT,
        "num_inference_steps": 10,
        "image": as_text(square),
        "width": 256,
        "height": 256,
        "draw_size": "asked",
    }
    near, facts = draw(**fields, strength=0.3)
    far, _ = draw(**fields, strength=0.9)
    assert facts["steps"] == 3 and facts["strength"] == 0.3
    assert distance(near, square) < distance(far, square)


def test_outside_the_mask_the_reply_equals_the_source_byte_for_byte(draw):
    source = Image.effect_noise((768, 512), 90).convert("RGB")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (200, 100, 500, 400))
    fields = {**EDIT, "num_inference_steps": 2, "image": as_text(source), "mask_image": as_text(mask)}
    for size in ({"width": 768, "height": 512}, {"draw_size": "asked"}):
        picture, facts = draw(**fields, **size)
        assert facts["dimensions"] == "768x512" and picture.size == (768, 512)
        outside = ImageChops.invert(mask)
        assert ImageChops.multiply(ImageChops.difference(picture, source).convert("L"), outside).getbbox() is None
        assert distance(picture.crop((230, 130, 470, 370)), source.crop((230, 130, 470, 370))) > 10


def test_a_mask_with_another_size_asked_for_keeps_the_resized_source(draw, square, mask):
    picture, _ = draw(**EDIT, image=as_text(square), mask_image=as_text(mask), width=512, height=512, draw_size="asked")
    source = square.resize((512, 512), Image.Resampling.LANCZOS)
    outside = ImageChops.invert(mask.resize((512, 512), Image.Resampling.NEAREST))
    assert ImageChops.multiply(ImageChops.difference(picture, source).convert("L"), outside).getbbox() is None


def test_a_mask_of_another_size_is_refused(warm_worker, square):
    other = as_text(Image.new("L", (64, 48), 255))
    error = run(warm_worker, {**EDIT, "image": as_text(square), "mask_image": other})["error"]
    assert error == "invalid_input: mask_image must have the size of the image, 256x256, or its aspect, not 64x48"


# What the judge sees of both, at the megapixel that the tiny checkpoint edits at


@pytest.fixture(scope="module")
def circle():
    scene = scenes.Scene("red", "circle", "blue", "large", "left", x=0.25, radius=0.23)
    return Image.fromarray(scenes.draw(scene, 1024, 1024))


GREEN = {"prompt": "make the background green", "num_inference_steps": 4, "seed": 3}


def test_strength_decides_how_far_the_instruction_is_followed(draw, circle):
    low, full = (draw(**GREEN, image=as_text(circle), strength=value)[0] for value in (0.2, 1.0))
    assert judge.read(low).background == "blue" and judge.read(full).background == "green"
    for picture in (low, full):
        assert judge.read(picture).colour == "red" and judge.overlap(circle, picture) > 0.8


def test_a_mask_decides_where_the_instruction_is_followed(draw, circle):
    mask, box = Image.new("L", circle.size, 0), (0, 224, 544, 800)  # the circle and some room around it
    mask.paste(255, box)
    yellow = {**GREEN, "prompt": "paint the circle yellow", "image": as_text(circle)}
    within, _ = draw(**yellow, mask_image=as_text(mask))
    beside, _ = draw(**yellow, mask_image=as_text(ImageChops.invert(mask)))
    assert judge.read(within).colour == "yellow" and judge.overlap(circle, within) > 0.8
    within.paste(0, box)
    assert within.tobytes() == Image.composite(Image.new("RGB", circle.size), circle, mask).tobytes()
    assert judge.read(beside).colour == "red" and beside.crop(box).tobytes() == circle.crop(box).tobytes()


@pytest.mark.parametrize("size", [pytest.param((512, 512), marks=only_proved), (576, 432)])
def test_a_masked_edit_without_a_size_repaints_a_circle_where_it_is(draw, size):
    """Drawn at the picture's own size it came out too large, elsewhere, and cut by the mask's edge."""
    scene = scenes.Scene("red", "circle", "blue", "large", "left", x=0.36, y=0.54, radius=0.23)
    source = Image.fromarray(scenes.draw(scene, *size))
    red, _, blue = (np.asarray(source, int)[..., channel] for channel in range(3))
    circle = red > blue
    rows, columns = np.nonzero(circle)
    mask, room = Image.new("L", size, 0), 30
    box = columns.min() - room, rows.min() - room, columns.max() + room, rows.max() + room
    mask.paste(255, tuple(map(int, box)))
    yellow = {**GREEN, "prompt": "paint the circle yellow"}
    drawn, facts = draw(**yellow, image=as_text(source), mask_image=as_text(mask))
    assert (facts["width"], facts["height"]) == drawn.size == size
    red, green, blue = (np.asarray(drawn, int)[..., channel] for channel in range(3))
    found = (red > blue + 60) & (green > blue + 60)
    assert (found & circle).sum() / (found | circle).sum() > 0.95
    middles = [np.argwhere(one).mean(axis=0) for one in (found, circle)]
    assert np.abs(middles[0] - middles[1]).max() < 1
