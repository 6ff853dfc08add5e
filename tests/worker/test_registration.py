"""An edit lies on its input picture, whatever the size: the tiny edit checkpoint leaves a shape where it was."""

import numpy as np
from PIL import Image

from qwen_tiny.evaluate import judge_edit, sample_edits
from qwen_tiny.world import scenes

from ..conftest import as_text, only_proved, picture_of, run

# Sides of input picture and result, for a long side of 1.
WIDE = ((1, 1 / 8), (1, 1 / 5), (1, 1 / 3), (1, 9 / 16), (1, 3 / 4))
ASPECTS = (*WIDE, (1, 1), *((height, width) for width, height in WIDE if height != 1 / 5))
# Long sides of input picture and result, and whether the edit has a mask.
LONG_SIDES = (
    (256, 256, True), (512, 512, False), (768, 1536, True), (1536, 768, False), (1024, 2048, False), (2048, 2048, True),
)  # fmt: skip
GRID = [(aspect, *long_sides) for aspect in ASPECTS for long_sides in LONG_SIDES]
SAMPLE = [((1, 1), 512, 512, True)]
STEPS = 6


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


def registration_error(worker, aspect, source_side, result_side, masked):
    """How far the circle has moved in an edit of the background, in pixels of the result."""
    scene = scenes.Scene("red", "circle", "blue", "large", "left", x=0.36, y=0.54, radius=0.23)
    width, height = sides(aspect, result_side)
    source = Image.fromarray(scenes.draw(scene, *sides(aspect, source_side)))
    fields = {
        "prompt": "make the background green",
        "num_inference_steps": STEPS,
        "seed": 3,
        "size": f"{width}x{height}",
    }
    if masked:
        fields["mask"] = as_text(Image.new("L", source.size, 255))
    output = run(worker, fields | {"image": as_text(source)})["output"]
    result = picture_of(output["image"]).convert("RGB")
    assert result.size == (width, height)
    expected = middle(Image.fromarray(scenes.draw(scene, width, height)), scenes.RGB["blue"], scenes.RGB["red"])
    return float(np.abs(middle(result, scenes.RGB["green"], scenes.RGB["red"]) - expected).max())


def test_an_edit_leaves_a_shape_within_half_a_pixel_of_its_place(warm_worker, sample):
    errors = [registration_error(warm_worker, *job) for job in sample(SAMPLE, GRID)]
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
