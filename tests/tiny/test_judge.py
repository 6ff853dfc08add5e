"""The judge names what drawn pictures show, and notices what is wrong with them."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qwen_tiny.world import judge, scenes, wordings

SIZES = [(256, 256), (512, 512), (768, 512), (512, 768), (1024, 1024)]


def drawn(scene, size=(256, 256)):
    return Image.fromarray(scenes.draw(scene, *size))


def random_scenes(rng):
    """One scene of every shape, size and position, in random colours."""
    for shape, size, position in itertools.product(wordings.SHAPES, wordings.SIZES, wordings.POSITIONS):
        yield scenes.random_scene(rng, shape=shape, size=size, position=position)


@pytest.mark.parametrize("size", SIZES)
def test_reads_every_drawn_scene(size):
    rng = random.Random(size[0])
    for scene in itertools.chain(*(random_scenes(rng) for _ in range(1 if size[0] > 256 else 4))):
        reading = judge.read(drawn(scene, size))
        for name in ("background", "colour", "shape", "size", "position"):
            assert getattr(reading, name) == getattr(scene, name), scene


@pytest.mark.parametrize("background", wordings.COLOURS)
def test_a_bare_background_has_no_subject(background):
    scene = scenes.Scene("red", None, background, "small", "left")
    assert judge.read(drawn(scene)) == judge.Reading(background)


def test_reads_through_blur_and_noise():
    rng = random.Random(1)
    noise = np.random.default_rng(1)
    for scene in random_scenes(rng):
        soft = drawn(scene, (512, 512)).resize((64, 64), Image.Resampling.BOX).resize((512, 512))
        noisy = np.clip(np.asarray(soft) + noise.normal(0, 6, (512, 512, 3)), 0, 255).astype(np.uint8)
        reading = judge.read(Image.fromarray(noisy))
        assert (reading.colour, reading.shape, reading.background) == (scene.colour, scene.shape, scene.background)


def test_a_colour_outside_the_palette_is_not_named():
    assert judge.read(Image.new("RGB", (256, 256), (128, 128, 128))).background is None


def test_a_ragged_blob_is_no_shape():
    pixels = np.full((256, 256, 3), scenes.RGB["white"], np.uint8)
    pixels[100:120, 40:200] = scenes.RGB["red"]
    assert judge.read(Image.fromarray(pixels)).shape is None


def test_overlap_is_one_for_the_same_subject_in_other_colours():
    scene = scenes.random_scene(random.Random(2), colour="red", background="blue")
    assert judge.overlap(drawn(scene), drawn(replace(scene, colour="yellow", background="black"))) > 0.98


def test_overlap_falls_when_the_subject_moves_or_shrinks():
    scene = scenes.random_scene(random.Random(3), size="large", position="left", shape="circle")
    assert judge.overlap(drawn(scene), drawn(replace(scene, x=0.75))) < 0.1
    assert judge.overlap(drawn(scene), drawn(replace(scene, radius=scene.radius * 0.9))) < 0.9
    assert judge.overlap(drawn(scene), drawn(replace(scene, shape=None))) == 0


def test_matches_counts_only_what_was_asked():
    reading = judge.Reading("blue", "red", "circle", "small", "left")
    assert judge.matches(reading, {"colour": "red", "shape": "square", "size": None}) == {
        "colour": True,
        "shape": False,
    }


def test_the_subject_is_the_largest_connected_piece():
    """A U, whose arms meet at the bottom alone, and in it a square that is larger than either arm."""
    u = np.zeros((256, 256), bool)
    u[40:200, 40:60] = u[40:200, 180:200] = u[180:200, 40:200] = True
    pixels = np.full((256, 256, 3), scenes.RGB["white"], np.uint8)
    pixels[u] = pixels[60:120, 90:150] = scenes.RGB["red"]
    assert np.array_equal(judge.subject_mask(Image.fromarray(pixels)), u)
