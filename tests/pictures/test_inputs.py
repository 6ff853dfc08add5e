"""Which pictures a request brings."""

import pytest
from PIL import Image

from qwen_worker.errors import JobError
from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.inputs import open_images

from ..conftest import as_text

WIDE, TALL = Image.new("RGB", (600, 300), "red"), Image.new("RGB", (300, 600), "blue")


def request(**fields):
    return parse({"prompt": "a", **fields}, "job")


def test_generate_brings_none():
    inputs = open_images(request(), 1, print)
    assert not inputs.sources and inputs.mask is None and not inputs.control


def test_pictures_come_in_their_order_with_the_mask():
    inputs = open_images(request(images=[as_text(WIDE), as_text(TALL)]), 1, print)
    assert [source.size for source in inputs.sources] == [(600, 300), (300, 600)] and inputs.mask is None
    white = as_text(Image.new("L", (600, 300), 255))
    inputs = open_images(request(image=as_text(WIDE), mask=white), 1, print)
    assert inputs.mask.size == inputs.sources[0].size and inputs.mask.mode == "L"


def test_a_size_is_taken_from_a_picture_that_is_there():
    with pytest.raises(JobError, match="invalid_input: size_from must be below the number of images, 2, not 2"):
        request(images=["aGk=", "aGk="], size_from=2)
    with pytest.raises(JobError, match="size_from must be a whole number from 0 to 9, not -1"):
        request(images=["aGk=", "aGk="], size_from=-1)
