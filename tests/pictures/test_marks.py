"""A picture's file says where the picture comes from, to readers that are not ours; its pixels and colours stay."""

import base64
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from qwen_worker.delivery_settings import Mark
from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.colour import PROFILE
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.marks import Origin, mark_pictures, origin_of

from ..conftest import as_text, run
from ..support import profiles

FORMATS = ["png", "jpeg", "webp"]
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 1, "seed": 1}


def by_pillow(file):
    """The source type as Pillow reads it, with defusedxml."""
    description = Image.open(io.BytesIO(file)).getxmp()["xmpmeta"]["RDF"]["Description"]
    return description["DigitalSourceType"]


def by_exiftool(file, *options):
    if not shutil.which("exiftool"):
        pytest.skip("exiftool is not installed")
    done = subprocess.run(["exiftool", "-json", *options, "-"], input=file, capture_output=True, check=True)
    return json.loads(done.stdout)[0]


def by_exiv2(file):
    """The XMP and the EXIF as exiv2 reads them, in one."""
    pyexiv2 = pytest.importorskip("pyexiv2", reason="pyexiv2 is not installed")
    with pyexiv2.ImageData(file) as picture:
        return picture.read_xmp() | picture.read_exif()


def marked(picture, origin, mark=Mark.XMP):
    picture = picture.copy()
    mark_pictures([picture], origin, mark)
    return picture


@pytest.fixture(params=["RGB", "grey", "P3"])
def picture(request):
    noise = Image.effect_noise((320, 256), 60)
    if request.param == "grey":
        noise.info[PROFILE] = profiles.grey()
        return noise
    noise = noise.convert("RGB")
    if request.param == "P3":
        noise.info[PROFILE] = profiles.DISPLAY_P3
    return noise


@pytest.mark.parametrize("output_format", FORMATS)
def test_two_foreign_readers_find_the_mark_and_the_pixels_are_equal(picture, output_format):
    origin = Origin.EDITED  # the longest
    plain, file = (encode_picture(one, output_format) for one in (picture, marked(picture, origin)))
    assert by_pillow(file) == TERMS + origin
    assert len(file) - len(plain) <= 1000
    before, after = (Image.open(io.BytesIO(one)) for one in (plain, file))
    assert np.array_equal(np.asarray(before), np.asarray(after)) and before.mode == after.mode
    assert before.info.get(PROFILE) == after.info.get(PROFILE)
    assert before.info.get("srgb") == after.info.get("srgb")
    found = by_exiftool(file, "-XMP-iptcExt:DigitalSourceType", "-Warning", "-validate")
    assert found["DigitalSourceType"] == TERMS + origin and "Warning" not in found


@pytest.mark.parametrize("output_format", FORMATS)
def test_exiv2_finds_it_too(picture, output_format):
    found = by_exiv2(encode_picture(marked(picture, Origin.GENERATED), output_format))
    assert found["Xmp.iptcExt.DigitalSourceType"] == TERMS + Origin.GENERATED


@pytest.mark.parametrize("output_format", FORMATS)
def test_without_the_mark_the_file_is_as_it_was_and_tells_nothing_of_the_caller_s_own(picture, output_format):
    plain = encode_picture(picture, output_format)
    picture.info["xmp"] = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>where the caller lives</x:xmpmeta>"
    assert encode_picture(marked(picture, Origin.EDITED, Mark.NONE), output_format) == plain
    assert b"where the caller lives" not in encode_picture(marked(picture, Origin.EDITED), output_format)


@pytest.mark.parametrize(
    ("fields", "is_stand_in", "term"),
    [
        ({}, False, "trainedAlgorithmicMedia"),
        ({}, True, "algorithmicMedia"),
        ({"image": "aGk="}, False, "compositeWithTrainedAlgorithmicMedia"),
        ({"image": "aGk=", "task": "background_replacement"}, False, "compositeWithTrainedAlgorithmicMedia"),
        ({"image": "aGk="}, True, "algorithmicallyEnhanced"),
    ],
)
def test_each_kind_of_job_has_its_term(fields, is_stand_in, term):
    assert origin_of(parse({"prompt": "a", **fields}, "a"), is_stand_in) == term


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_picture_of_a_reply_is_marked(ask, scene, output_format):
    several = ask(**SMALL, num_images=2, output_format=output_format)["output"]["images"]
    masked = {"image": as_text(scene), "mask_image": as_text(Image.new("L", scene.size, 255))}
    edit = SMALL | {"prompt": "make it green", "draw_size": "asked"}
    edited = ask(**edit, output_format=output_format, **masked)["output"]
    for text in several:
        assert by_pillow(base64.b64decode(text)) == TERMS + "trainedAlgorithmicMedia"
    assert by_pillow(base64.b64decode(edited["image"])) == TERMS + "compositeWithTrainedAlgorithmicMedia"


def test_a_stand_in_s_file_says_that_no_model_drew_it_and_the_operator_may_leave_marks_out(cold_worker, scene):
    worker = cold_worker(QWEN_FALLBACK="force")
    for more, term in (({}, "algorithmicMedia"), ({"image": as_text(scene)}, "algorithmicallyEnhanced")):
        reply = run(worker, {**SMALL, **more})["output"]
        assert by_pillow(base64.b64decode(reply["image"])) == TERMS + term
    unmarked = run(cold_worker(QWEN_FALLBACK="force", QWEN_MARK="none"), SMALL)["output"]
    assert Image.open(io.BytesIO(base64.b64decode(unmarked["image"]))).getxmp() == {}
