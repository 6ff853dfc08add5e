"""Transparency in pictures alone: what is kept, what is put on white, and what the files hold."""

import io

import numpy as np
import pytest
from PIL import Image

from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.alpha import appearances, as_asked, blend, is_see_through, on_white
from qwen_worker.pictures.colour import PROFILE
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.inputs import FEW, REFERENCE_PIXELS, open_images

from ..conftest import as_text
from ..support import profiles

SIZE = 64


def random_rgba(seed=0, alpha=None):
    values = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    if alpha is not None:
        values[..., 3] = alpha
    return Image.fromarray(values, "RGBA")


def asked(**fields):
    return parse({"prompt": "a", **fields}, "job")


def opened(*pictures, **fields):
    warnings = []
    inputs = open_images(asked(images=list(map(as_text, pictures)), **fields), 1, warnings.append)
    return inputs, warnings


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_files_hold_every_number_also_beneath_what_is_transparent(output_format):
    picture = random_rgba()
    again = Image.open(io.BytesIO(encode_picture(picture, output_format)))
    assert again.mode == "RGBA" and again.tobytes() == picture.tobytes()


def test_lossy_webp_keeps_alpha_exactly():
    picture = random_rgba()
    again = Image.open(io.BytesIO(encode_picture(picture, "webp", 50)))
    assert again.getchannel("A").tobytes() == picture.getchannel("A").tobytes()


@pytest.mark.parametrize("profile", [None, profiles.ADOBE_RGB])
def test_an_input_picture_keeps_its_alpha_to_the_bit(profile):
    picture = random_rgba()
    if profile:
        picture.info[PROFILE] = profile
    inputs, _ = opened(picture)
    layer = inputs.for_model(True).sources[0]
    assert layer.mode == "RGBA" and layer.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert inputs.for_model(False).sources[0].mode == "RGB"


def test_an_opaque_rgba_file_is_the_same_for_every_model():
    inputs, _ = opened(random_rgba(alpha=255))
    assert inputs.for_model(True).sources[0].mode == "RGB"


def test_many_large_pictures_are_held_smaller_and_few_as_they_are():
    large = Image.new("RGB", (6000, 3000))
    few, many = opened(*[large] * FEW)[0], opened(*[large] * (FEW + 1))[0]
    assert few.sources[0].size == (6000, 3000)
    assert {source.size for source in many.sources} == {(5657, 2828)} and 5657 * 2828 <= REFERENCE_PIXELS


def test_a_mask_s_inside_and_outside_are_exact_and_its_edge_takes_no_colour_from_what_is_transparent():
    below, above = random_rgba(1), random_rgba(2)
    mask = Image.new("L", below.size)
    mask.paste(255, (0, 0, 20, SIZE))
    mask.paste(128, (20, 0, 24, SIZE))
    mixed = blend(above, below, mask)
    assert mixed.crop((0, 0, 20, SIZE)).tobytes() == above.crop((0, 0, 20, SIZE)).tobytes()
    assert mixed.crop((24, 0, SIZE, SIZE)).tobytes() == below.crop((24, 0, SIZE, SIZE)).tobytes()
    hidden = Image.new("RGBA", below.size, (255, 0, 0, 0))
    edge = np.asarray(blend(Image.new("RGBA", below.size, (0, 0, 200, 255)), hidden, mask))[:, 21]
    assert (edge[:, 0] == 0).all() and (edge[:, 2] >= 199).all() and set(edge[:, 3]) <= {127, 128}


@pytest.mark.parametrize(
    ("alpha", "fields", "mode"),
    [
        (255, {}, "RGB"),
        (250, {}, "RGB"),  # a model's opaque is not exactly so
        (100, {}, "RGBA"),
        (100, {"background": "opaque"}, "RGB"),
        (100, {"output_format": "jpeg"}, "RGB"),
        (250, {"background": "transparent"}, "RGBA"),
    ],
)
def test_what_is_asked_for_decides_whether_alpha_stays(alpha, fields, mode):
    warnings = []
    picture = as_asked(random_rgba(alpha=alpha), asked(**fields), warnings.append)
    assert picture.mode == mode
    assert [warning.split(";")[0] for warning in warnings] == (
        ["the model drew nothing transparent"] if fields.get("background") == "transparent" else []
    )


def test_a_hole_of_a_thousandth_is_seen():
    picture = Image.new("RGBA", (100, 100), "white")
    assert not is_see_through(picture)
    picture.paste((0, 0, 0, 0), (0, 0, 10, 1))
    assert is_see_through(picture)


def test_what_transparency_hides_is_looked_at_too():
    picture = random_rgba(alpha=0)
    white, hidden = appearances(picture)
    assert (
        white.getcolors() == [(SIZE * SIZE, (255, 255, 255))] and hidden.tobytes() == picture.convert("RGB").tobytes()
    )
    assert appearances(hidden) == [hidden] and on_white(hidden) is hidden
