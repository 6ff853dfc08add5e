"""The tasks that training draws are what they claim, and never the held-out ones."""

import itertools
import random

import numpy as np
import pytest

from qwen_tiny.world import scenes, tasks, wordings


def test_training_never_sees_a_held_out_combination():
    rng = random.Random(0)
    drawn = [tasks.training_scene(rng) for _ in range(500)]
    for _ in range(200):
        drawn += [scene for scene in tasks.family(rng).values() if scene.shape]
    assert not any(scene.held_out for scene in drawn)


def test_held_out_combinations_cover_every_word():
    combinations = itertools.product(wordings.COLOURS, wordings.SHAPES, wordings.COLOURS)
    drawn = [scenes.Scene(*words, "large", "center") for words in combinations if words[0] != words[2]]
    held_out = [scene for scene in drawn if scene.held_out]
    assert 20 < len(held_out) < 40
    assert {scene.colour for scene in held_out} == {scene.background for scene in held_out} == set(wordings.COLOURS)
    assert {scene.shape for scene in held_out} == set(wordings.SHAPES)


def test_a_prompt_says_what_it_asks_and_no_more():
    rng = random.Random(1)
    for _ in range(300):
        scene = tasks.training_scene(rng)
        prompt, asked = tasks.describe(rng, scene)
        words = prompt.lower().replace(",", " ").replace(".", " ").split()
        assert {scene.colour, scene.shape, scene.background} <= set(words)
        assert bool(set(words) & {"small", "little", "large", "big"}) == (asked["size"] is not None)
        assert bool(set(words) & {"left", "right", "center", "centre", "middle"}) == (asked["position"] is not None)


@pytest.mark.parametrize("operation", wordings.OPERATIONS)
def test_an_edit_changes_one_thing(operation):
    rng = random.Random(operation)
    changed = {"background": "background", "recolour": "colour", "reshape": "shape", "remove": "shape"}[operation]
    found = 0
    while found < 20:
        edit = tasks.random_edit(rng, tasks.family(rng))
        if edit.operation != operation:
            continue
        found += 1
        different = {name for name in vars(edit.before) if getattr(edit.before, name) != getattr(edit.after, name)}
        assert different == {changed}
        assert edit.target is None or edit.target in edit.prompt.lower()


def test_drawing_is_antialiased_and_exact_in_area():
    scene = scenes.Scene("black", "circle", "white", "large", "center", 0.5, 0.5, 0.25)
    covered = scenes.coverage(scene, 200, 200)
    assert covered.sum() == pytest.approx(np.pi * 50**2, rel=0.002)
    assert 0 < ((covered > 0) & (covered < 1)).mean() < 0.02


def test_the_same_seed_draws_the_same_world():
    one, other = (tasks.random_edit(rng, tasks.family(rng)) for rng in (random.Random(7), random.Random(7)))
    assert one == other
