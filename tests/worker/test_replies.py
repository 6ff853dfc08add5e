"""Whole replies against those that were recorded: metadata equal, pictures equal but for a processor's rounding."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from . import replies

LEAST_PSNR = 45  # dB; processors round differently
PICTURES = ("image", "images", "b64_json")


@pytest.fixture(scope="module")
def recorded_workers():
    return {}


@pytest.fixture
def workers(name, recorded_workers):
    """Workers by their settings, kept from one job to the next; of their own, for a job whose reply counts jobs."""
    if name not in replies.COUNTED:
        return recorded_workers
    own = {}
    for earlier in replies.COUNTED[name]:
        replies.posted(earlier, own)
    return own


@pytest.mark.parametrize("name", replies.jobs())
def test_a_reply_is_as_recorded(name, workers):
    found, pictures = split(replies.steady(replies.posted(name, workers)))
    wanted, recorded = split(replies.recorded(name))
    assert found == wanted
    assert len(pictures) == len(recorded)
    for ours, theirs in zip(pictures, recorded, strict=True):
        assert psnr(ours, theirs) >= LEAST_PSNR


def split(reply):
    """A reply with a picture's size and format in its place, and the pictures."""
    pictures = []

    def plain(value, name=""):
        if isinstance(value, dict):
            return {key: plain(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one, name) for one in value]
        if name in PICTURES and isinstance(value, str):
            picture = Image.open(io.BytesIO(base64.b64decode(value)))
            pictures.append(np.asarray(picture.convert("RGB"), dtype=float))
            return [picture.format, *picture.size]
        return value

    return json.dumps(plain(reply), sort_keys=True), pictures


def psnr(ours, theirs):
    error = ((ours - theirs) ** 2).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)
