"""Pictures that are longer than WebP has them: refused before anything is drawn, or written in another format."""

import threading

import numpy as np
import pytest
from PIL import Image

from qwen_worker.errors import InvalidInput, JobError
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.values import ignore
from qwen_worker.pictures.delivery import size_warning, terms_of
from qwen_worker.pictures.encodings import BASE64, WEBP_SIDE, encodings_for
from qwen_worker.pictures.exact import encode_whole, encodings_of_photo
from qwen_worker.pictures.photo import Photo
from qwen_worker.pictures.stitch import stitch_of
from qwen_worker.settings import Settings

LONG = (WEBP_SIDE + 1, 400)


def request(**fields):
    return parse({"prompt": "a", "image": "aa", "mask_image": "aa", **fields}, "job")


def long_stitch():
    mask = Image.new("L", LONG)
    mask.paste(255, (100, 100, 200, 200))
    noise = np.random.default_rng(0).integers(0, 256, (LONG[1], LONG[0], 3), np.uint8)
    return stitch_of(Photo(Image.fromarray(noise)), mask, None, False, ignore)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_what_has_no_room_is_known_before_it_is_drawn_whatever_channels_it_has(channels, deep):
    width, height = 300, 240
    numbers = np.random.default_rng(0).integers(0, 65536 if deep else 256, (height, width, channels))
    if deep:
        photo = Photo(None, numbers.astype(np.uint16))
    else:
        photo = Photo(Image.fromarray(numbers.astype(np.uint8)))
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 9, 9))
    stitch = stitch_of(photo, mask, None, False, ignore)
    drawn = Image.new("RGB", stitch.frame.drawn)
    size = len(encode_whole(drawn, stitch, "png", None, {})) * BASE64
    asked = request(output_format="png")

    def encodings(room):
        return encodings_of_photo(asked, stitch, room, 1, ignore, threading.Event())

    assert encodings(1.02 * size) == (("png", None),)
    with pytest.raises(JobError, match="result_too_large: exact outside the mask"):
        encodings(0.85 * size)


@pytest.mark.parametrize("fields", [{"output_format": "webp"}, {"lossless": False}])
def test_a_longer_picture_than_webp_has_is_refused_before_it_is_drawn(fields):
    asked = request(**fields)
    terms = terms_of({"id": "job"}, asked, Settings(), 10**8, None)
    with pytest.raises(InvalidInput, match="at most 16383 pixels on a side.*16384x400"):
        size_warning(asked, LONG, terms)
    with pytest.raises(InvalidInput, match="output_format png"):
        encodings_of_photo(asked, long_stitch(), None, 1, ignore, threading.Event())


def test_auto_writes_a_picture_that_is_too_long_for_webp_as_png_alone():
    assert encodings_for(request(), LONG) == [("png", None)]
    assert encodings_for(request(), (WEBP_SIDE, 400))[1:] == [("webp", None), ("webp", 95), ("webp", 85), ("webp", 75)]
    assert encodings_of_photo(request(), long_stitch(), 10**9, 1, ignore, threading.Event()) == (("png", None),)
