"""The committed weights draw and edit as told, and the score falls when anything that matters is spoilt.

Small samples: the full figures are in the model card.
"""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

evaluate = importlib.import_module("models.tiny-qwen-image.evaluate")

HERE = Path(evaluate.__file__).parent
PROMPTS, STEPS = 24, 12
EDITS, EDIT_STEPS = 3, 8
LEAST = {"colour": 95, "background": 95, "position": 95, "size": 90, "shape": 70, "all": 70}  # per cent
EDIT_LEAST = 60
MARGIN = 20  # points by which a break must show
GUIDANCE_MARGIN = 5


@pytest.fixture(scope="module")
def tasks():
    return evaluate.prompt_tasks(PROMPTS, seed=11, size=(256, 256))


def score(tasks, guidance=4.0, broken=None):
    pipeline = evaluate.load(HERE / "generate", broken=broken)
    return evaluate.shares(evaluate.draw(pipeline, tasks, STEPS, guidance, shuffled=broken == "shuffled"))


@pytest.fixture(scope="module")
def whole(tasks):
    return score(tasks)


def test_prompts_are_drawn_as_told(whole):
    for name, least in LEAST.items():
        assert whole[name] >= least, (name, whole)


@pytest.mark.parametrize("broken", ["statistics", "shuffled"])
def test_a_broken_pipeline_is_noticed(tasks, whole, broken):
    assert score(tasks, broken=broken)["all"] <= whole["all"] - MARGIN


def test_guidance_is_what_makes_up_for_wrong_captions(tasks, whole):
    """The training captions are wrong one time in four: without guidance the pictures are too."""
    assert score(tasks, guidance=1.0)["all"] <= whole["all"] - GUIDANCE_MARGIN


def removals(broken=None):
    tasks = [task for task in evaluate.edit_tasks(40, seed=11) if task.operation == "remove"][:EDITS]
    pipeline = evaluate.load(HERE / "edit", broken=broken)
    return evaluate.shares(evaluate.redraw(pipeline, tasks, EDIT_STEPS, 4.0))


def test_the_subject_is_removed_and_the_background_kept():
    assert removals()["all"] >= EDIT_LEAST


def test_an_edit_without_its_picture_is_noticed():
    assert removals("no-image")["all"] < EDIT_LEAST
