"""Whole jobs with pictures as cameras, browsers and editors write them."""

import base64
import io

import pytest
from PIL import Image, ImageChops, ImageCms

from qwen_worker.pictures.colour import PROFILE, srgb_profile

from ..conftest import as_text, file_of, heic_of, picture_of, run, text_of, warnings_of
from ..support import profiles
from ..support.pictures import decode_picture

EDIT = {
    "task": "edit", "prompt": "make the background green", "num_inference_steps": 2, "guidance_scale": 1, "seed": 7,
    "draw_size": "asked",
}  # fmt: skip
SMALL = {**EDIT, "width": 256, "height": 256}  # for edits without a mask, which have else about a megapixel


@pytest.fixture
def edited(ask):
    """edited(**fields): the picture of an edit, as Pillow opens it, and its metadata."""

    def replied(**fields):
        body = ask(**(EDIT if "mask_image" in fields else SMALL) | fields)
        assert "error" not in body, body["error"]
        return Image.open(io.BytesIO(base64.b64decode(body["output"]["image"]))), body["output"]["metadata"]

    return replied


def in_space(picture, profile):
    ends = (ImageCms.ImageCmsProfile(io.BytesIO(one)) for one in (srgb_profile(), profile))
    return ImageCms.profileToProfile(picture, *ends, outputMode="RGB")


def changed(a, b):
    """How much two pictures of one mode differ: the largest difference and the box around all of them."""
    found = ImageChops.difference(a, b)
    return max(found.tobytes()), found.getbbox()


@pytest.fixture
def small(scene):
    return scene.resize((256, 256))


def test_a_photo_in_display_p3_is_edited_as_its_srgb_twin(edited, small):
    """Twins differ by rounding alone, and so do their edits: far less than by numbers that are read as sRGB."""
    p3 = in_space(small, profiles.DISPLAY_P3)
    twin, metadata = edited(image=as_text(small))
    found, _ = edited(image=as_text(p3, icc_profile=profiles.DISPLAY_P3))
    assert found.info["srgb"] == twin.info["srgb"] == 0 and not warnings_of(metadata)
    assert sum(ImageChops.difference(twin, found).convert("L").tobytes()) / (twin.width * twin.height) < 1


@pytest.mark.parametrize("profile", [profiles.DISPLAY_P3, profiles.PROPHOTO], ids=["display_p3", "prophoto"])
def test_outside_its_mask_a_photo_keeps_its_own_numbers_and_its_profile(edited, small, profile):
    p3, mask = in_space(small, profile), Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    found, metadata = edited(image=as_text(p3, icc_profile=profile), mask_image=as_text(mask))
    assert found.info[PROFILE] == profile and not warnings_of(metadata)
    worst, box = changed(found, p3)
    assert worst > 30 and box[2] <= 128


def test_cmyk_comes_back_as_srgb_and_the_reply_says_so(edited, small):
    inks = small.convert("CMYK")
    found, metadata = edited(image=as_text(inks, "TIFF", icc_profile=profiles.cmyk()))
    assert warnings_of(metadata) == ["image is CMYK, and the result is sRGB"] and found.info["srgb"] == 0


def test_a_stand_in_keeps_the_numbers_outside_the_mask_and_its_band_too(cold_worker, small):
    p3, mask = in_space(small, profiles.DISPLAY_P3), Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    fields = {"image": as_text(p3, icc_profile=profiles.DISPLAY_P3), "mask_image": as_text(mask), "prompt": "invert"}
    reply = run(cold_worker(QWEN_FALLBACK="force"), {"task": "edit", **fields})["output"]
    found = picture_of(reply["image"])
    assert found.info[PROFILE] == profiles.DISPLAY_P3
    above_the_band = 0, 0, 256, 64
    assert changed(found.crop(above_the_band), p3.crop(above_the_band))[1] == (0, 0, 128, 64)


def test_a_heic_of_a_phone_is_edited_and_keeps_its_profile_outside_the_mask(edited, small):
    mask = Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    data = heic_of(in_space(small, profiles.DISPLAY_P3), quality=95, icc_profile=profiles.DISPLAY_P3)
    sent = decode_picture(data, "image")  # in its own numbers
    found, metadata = edited(image=text_of(data), mask_image=as_text(mask))
    assert found.info[PROFILE] == profiles.DISPLAY_P3 and not warnings_of(metadata)
    assert changed(found, sent)[1][2] <= 128


def test_openai_s_mask_is_repainted_where_it_is_transparent_and_a_native_one_must_say_so(ask, small):
    mask = Image.new("RGBA", (512, 512), "white")  # of twice the picture's size, which is fitted
    mask.paste((255, 255, 255, 0), (0, 0, 256, 512))
    fields = {name: value for name, value in EDIT.items() if name != "task"} | {"image": as_text(small)}
    openai_input = fields | {"mask": {"image_url": f"data:image/png;base64,{as_text(mask)}"}}
    reply = ask(openai_route="/v1/images/edits", openai_input=openai_input)["output"]
    found = picture_of(reply["data"][0]["b64_json"])
    worst, box = changed(found, small)
    assert worst > 30 and box[2] <= 128
    refused = ask(**fields, mask_image=as_text(mask))["error"]
    assert refused.startswith("invalid_input: mask_image has transparent pixels") and "mask_from" in refused
    native = ask(**fields, mask_image=as_text(mask), mask_from="alpha")["output"]
    assert native["image"] == reply["data"][0]["b64_json"]


def test_what_was_read_otherwise_than_sent_is_in_the_reply(edited, small):
    data = file_of(small, "JPEG", quality=90)[:-2]
    _, metadata = edited(image=f'"{text_of(data)}"')
    (warning,) = warnings_of(metadata)
    assert warning.startswith("image is a JPEG file that was cut off: less than 1 % of the picture")
