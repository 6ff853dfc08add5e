"""The drift of an edit's colours is measured where the edit is unchanged, and undone in the whole picture."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.matching import mean_difference
from benchmarks.measure.altered_photos import altered, drifted
from qwen_worker.pictures.drift import drift_of
from qwen_worker.pictures.matching import COMPARISON, Matching

SIZE = (640, 512)


def case(number):
    return altered(np.random.default_rng(number), *SIZE, off=0.0)


def kept_colours(source, edit):
    result = Matching(align=False, keep_colours=True).match(source, edit)
    return result, result.info[COMPARISON]["colour_drift"]


@pytest.mark.parametrize("number", range(3))
def test_a_drift_is_undone_to_a_level_and_what_is_edited_keeps_its_own_difference(number):
    made = case(number)
    edit = drifted(np.random.default_rng(number), made.edit)
    result, facts = kept_colours(made.source, edit)
    assert mean_difference(edit, made.edit, made.kept) > 3
    assert mean_difference(result, made.edit, made.kept) < 1
    assert mean_difference(result, made.edit, ~made.kept) < 2
    assert facts["undone"] is True


def test_the_drift_is_told_in_levels_of_each_channel():
    made = case(4)
    warm = Image.fromarray((np.asarray(made.edit).astype(int) + (7, 0, -5)).clip(0, 255).astype(np.uint8))
    facts = kept_colours(made.source, warm)[1]
    assert facts["mean"] == pytest.approx([7, 0, -5], abs=0.7)
    assert facts["histogram"] == pytest.approx([7, 0, 5], abs=1.5)  # noise widens a histogram


def test_what_has_been_given_another_colour_on_purpose_keeps_it():
    made = case(5)
    pixels = np.asarray(made.edit).copy()
    coat = (slice(300, 500), slice(50, 250))
    pixels[coat] = pixels[coat][..., ::-1] // 2 + 90  # its texture is as it was
    result = np.asarray(kept_colours(made.source, Image.fromarray(pixels))[0])
    assert np.abs(result[coat].astype(int) - pixels[coat]).mean() < 2


def test_an_edit_without_drift_stays_as_it_is():
    made = case(6)
    result, facts = kept_colours(made.source, made.edit)
    assert mean_difference(result, made.edit, made.kept) < 1 and max(np.abs(facts["mean"])) < 0.6


def test_of_another_picture_no_drift_is_known_and_none_is_undone():
    made = altered(np.random.default_rng(7), *SIZE, related=False)
    result, facts = kept_colours(made.source, made.edit)
    assert facts == {"undone": False} and result.tobytes() == made.edit.tobytes()


def test_few_blocks_tell_no_drift():
    blocks = np.zeros((7, 10, 3), np.float32)
    assert drift_of(blocks, blocks + 5, np.ones(7, bool)) is None


def test_transparency_is_kept():
    made = case(8)
    edit = drifted(np.random.default_rng(8), made.edit)
    edit.putalpha(Image.linear_gradient("L").resize(SIZE))
    result, facts = kept_colours(made.source, edit)
    assert facts["undone"] and result.mode == "RGBA"
    assert result.getchannel("A").tobytes() == edit.getchannel("A").tobytes()
    assert mean_difference(result.convert("RGB"), made.edit, made.kept) < 1
