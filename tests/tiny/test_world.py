"""The tasks that training draws are what they claim, and never the held-out ones."""

import random

import numpy as np
import pytest

from qwen_tiny.world import scenes as world
from qwen_tiny.world import tasks as dataset
from qwen_tiny.world import wordings as prompts


def test_training_never_sees_a_held_out_combination():
    rng = random.Random(0)
    scenes = [dataset.training_scene(rng) for _ in range(500)]
    for _ in range(200):
        scenes += [scene for scene in dataset.family(rng).values() if scene.shape]
    assert not any(world.held_out(s.colour, s.shape, s.background) for s in scenes)


def test_a_prompt_says_what_it_asks_and_no_more():
    rng = random.Random(1)
    for _ in range(300):
        scene = dataset.training_scene(rng)
        prompt, asked = dataset.describe(rng, scene)
        words = prompt.lower().replace(",", " ").replace(".", " ").split()
        assert {scene.colour, scene.shape, scene.background} <= set(words)
        assert bool(set(words) & {"small", "little", "large", "big"}) == (asked["size"] is not None)
        assert bool(set(words) & {"left", "right", "center", "centre", "middle"}) == (asked["position"] is not None)


@pytest.mark.parametrize("operation", prompts.OPERATIONS)
def test_an_edit_changes_one_thing(operation):
    rng = random.Random(operation)
    changed = {"background": "background", "recolour": "colour", "reshape": "shape", "remove": "shape"}[operation]
    found = 0
    while found < 20:
        task = dataset.edit(rng, dataset.family(rng))
        if task.operation != operation:
            continue
        found += 1
        different = {name for name in vars(task.before) if getattr(task.before, name) != getattr(task.after, name)}
        assert different == {changed}
        assert task.target is None or task.target in task.prompt.lower()


def test_drawing_is_antialiased_and_exact_in_area():
    scene = world.Scene("black", "circle", "white", "large", "center", 0.5, 0.5, 0.25)
    covered = world.mask(scene, 200, 200)
    assert covered.sum() == pytest.approx(np.pi * 50**2, rel=0.002)
    assert 0 < ((covered > 0) & (covered < 1)).mean() < 0.02


def test_the_same_seed_draws_the_same_world():
    one, other = (dataset.edit(rng, dataset.family(rng)) for rng in (random.Random(7), random.Random(7)))
    assert one == other
