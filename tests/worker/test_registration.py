"""An edit lies on its input picture, whatever the size: the tiny edit checkpoint leaves a shape where it was."""

import numpy as np
from PIL import Image

from qwen_tiny.evaluate import judge_edit, sample_edits
from qwen_tiny.world import scenes

from ..conftest import as_text, only_proved, picture_of, run

# Sides of input picture and result, for a long side of 1. The tiny checkpoint was trained on the last four.
EXTREME = ((1, 1 / 8), (1, 1 / 5), (1, 1 / 3), (1 / 3, 1), (1 / 5, 1), (1 / 8, 1))
TRAINED = ((1, 1), (1, 3 / 4), (3 / 4, 1), (1, 9 / 16))
# Long sides of input picture and result, and whether the edit has a mask.
LONG_SIDES = (
    (256, 256, True), (512, 512, False), (768, 1536, True), (1536, 768, False), (1024, 2048, False), (2048, 2048, True),
)  # fmt: skip


def sides(aspect, long_side):
    """Width and height of the aspect; the shorter side has 256 pixels at least, and both are multiples of 16."""
    longer = max(long_side, 256 / min(aspect))
    return tuple(16 * round(longer * side / 16) for side in aspect)


def middle(picture, background, subject):
    """(x, y) in pixels of the middle of what has the subject's colour, weighted by how much of it each pixel has."""
    towards = np.array(subject, float) - background
    share = (np.asarray(picture, float) - background) @ towards / (towards @ towards)
    weight = np.where(share > 0.15, share.clip(0, 1), 0)
    y, x = np.indices(weight.shape) + 0.5
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def registration_errors(worker, aspects, long_sides, background="blue", **how):
    """How far a red circle on blue has moved in an edit of each aspect and size, in pixels of the result."""
    scene = scenes.Scene("red", "circle", "blue", "large", "left", x=0.36, y=0.54, radius=0.23)
    errors = []
    for aspect in aspects:
        for source_side, result_side, has_mask in long_sides:
            width, height = sides(aspect, result_side)
            source = Image.fromarray(scenes.draw(scene, *sides(aspect, source_side)))
            fields = {"image": as_text(source), "size": f"{width}x{height}", "seed": 3} | how
            if has_mask:
                fields["mask"] = as_text(Image.new("L", source.size, 255))
            result = picture_of(run(worker, fields)["output"]["image"]).convert("RGB")
            assert result.size == (width, height)
            found = middle(result, scenes.RGB[background], scenes.RGB["red"])
            place = middle(Image.fromarray(scenes.draw(scene, width, height)), scenes.RGB["blue"], scenes.RGB["red"])
            errors.append(float(np.abs(found - place).max()))
    return errors


def test_an_edit_that_changes_nothing_lies_on_its_picture_in_every_aspect(warm_worker, sample):
    how = {"prompt": "make the background blue", "num_inference_steps": 20, "strength": 0.05}
    aspects, long_sides = sample(EXTREME[:1], EXTREME + TRAINED), sample(LONG_SIDES[2:3], LONG_SIDES)
    errors = registration_errors(warm_worker, aspects, long_sides, **how)
    assert sum(errors) / len(errors) < 0.5, errors


def test_an_edit_from_noise_leaves_a_shape_where_it_was(warm_worker, sample):
    how = {"prompt": "make the background green", "num_inference_steps": 6, "background": "green"}
    aspects, long_sides = sample(TRAINED[:1], TRAINED[:3]), sample(LONG_SIDES[:1], LONG_SIDES)
    errors = registration_errors(warm_worker, aspects, long_sides, **how)
    assert sum(errors) / len(errors) < 0.5, errors


@only_proved
def test_edits_are_as_right_at_other_sizes_as_at_the_pipeline_s_own(warm_worker):
    right = {}
    edits = sample_edits(24, seed=1)
    for side in (512, 1024, 1536):
        judged = []
        for number, edit in enumerate(edits):
            before = Image.fromarray(scenes.draw(edit.before, 512, 512))
            fields = {"prompt": edit.prompt, "num_inference_steps": 12, "seed": number, "size": f"{side}x{side}"}
            after = picture_of(run(warm_worker, fields | {"image": as_text(before)})["output"]["image"])
            judged.append(all(judge_edit(edit, before, after).values()))
        right[side] = 100 * sum(judged) / len(judged)
    assert max(right.values()) - min(right.values()) <= 3 and right[1024] > 90, right
