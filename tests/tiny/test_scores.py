"""The committed weights draw and edit as told, and the score falls when anything that matters is spoilt.

Small samples: the full figures are in the model card.
"""

import math

import pytest
import torch

from qwen_tiny import CHECKPOINT, evaluate
from qwen_tiny.world.wordings import OPERATIONS

PROMPTS, STEPS = 48, 12
EDITS, EDIT_STEPS = 2, 8  # of each kind
LEAST = {"colour": 97, "background": 97, "position": 97, "size": 97, "shape": 95, "all": 92}  # per cent
EDIT_LEAST = 87
MARGIN = 20  # points by which a break must show
GUIDANCE_MARGIN = 8  # of 23 on the model card's 96 prompts


@pytest.fixture(scope="module")
def prompts():
    return evaluate.sample_prompts(PROMPTS, seed=11, size=(256, 256))


def score(prompts, guidance=4.0, broken=None):
    pipeline = evaluate.load_pipeline(CHECKPOINT / "generate", broken=broken)
    images = evaluate.draw_prompts(pipeline, prompts, STEPS, guidance)
    shown = images[1:] + images[:1] if broken == "shuffled" else images
    return evaluate.per_cent_right(evaluate.judge_prompts(shown, prompts))


@pytest.fixture(scope="module")
def whole(prompts):
    return score(prompts)


def test_prompts_are_drawn_as_told(whole):
    for name, least in LEAST.items():
        assert whole[name] >= least, (name, whole)


@pytest.mark.parametrize("broken", ["statistics", "shuffled"])
def test_a_broken_pipeline_is_noticed(prompts, whole, broken):
    assert score(prompts, broken=broken)["all"] <= whole["all"] - MARGIN


def test_guidance_is_what_makes_up_for_wrong_captions(prompts, whole):
    """Some of the captions of training are another picture's: without guidance some of the pictures are too."""
    unguided = score(prompts, guidance=1.0)
    assert unguided["all"] <= whole["all"] - GUIDANCE_MARGIN


def edits(broken=None):
    tasks = evaluate.sample_edits(40, seed=11)
    few = [task for kind in OPERATIONS for task in [task for task in tasks if task.operation == kind][:EDITS]]
    pipeline = evaluate.load_pipeline(CHECKPOINT / "edit", broken=broken)
    return evaluate.per_cent_right(evaluate.score_edits(pipeline, few, EDIT_STEPS, 4.0))


def test_edits_change_what_they_are_told_and_keep_the_rest():
    assert edits()["all"] >= EDIT_LEAST


def test_edits_without_their_picture_are_noticed():
    assert edits("no-image")["all"] < EDIT_LEAST


def levels(broken=None):
    """The noise levels that a picture of 256 x 256 is drawn at in four steps."""
    pipeline = evaluate.load_pipeline(CHECKPOINT / "generate", broken=broken)
    evaluate.draw_prompts(pipeline, [evaluate.Prompt("a red circle", {}, (256, 256))], 4, 1.0)
    return pipeline.scheduler.sigmas


def test_a_schedule_that_is_not_shifted_is_noticed_by_its_levels():
    """Not by pictures: a prompt of this world says nearly all of its picture, which is then found along any levels."""
    mu = 0.5 + (64 - 256) * (0.9 - 0.5) / (8192 - 256)  # of the picture's 64 tokens, between base_shift and max_shift
    even = torch.linspace(1, 1 / 4, 4)
    left = 1 - math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    expected = torch.cat([1 - left * (1 - 0.02) / left[-1], torch.zeros(1)])  # the last ends at shift_terminal
    assert torch.allclose(levels(), expected, atol=1e-5)
    assert (levels("schedule") - expected).abs().max() > 0.05
