"""Which pictures a request brings, and what size follows from them."""

import pytest
from PIL import Image

from qwen_worker.errors import JobError
from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.inputs import open_images, output_size

from ..conftest import as_text

WIDE, TALL = Image.new("RGB", (600, 300), "red"), Image.new("RGB", (300, 600), "blue")


def request(**fields):
    return parse({"prompt": "a", **fields}, "job")


def test_generate_brings_none():
    assert open_images(request(), 1, print) == ([], None, None)


def test_pictures_come_in_their_order_with_the_mask():
    sources, mask, _ = open_images(request(images=[as_text(WIDE), as_text(TALL)]), 1, print)
    assert [source.size for source in sources] == [(600, 300), (300, 600)] and mask is None
    white = as_text(Image.new("L", (600, 300), 255))
    sources, mask, _ = open_images(request(image=as_text(WIDE), mask=white), 1, print)
    assert mask.size == sources[0].size and mask.mode == "L"


def test_the_size_asked_for_wins_else_the_aspect_of_the_first_picture_or_of_the_one_that_is_named():
    both = request(images=["aGk=", "aGk="])
    assert output_size(both, [WIDE, TALL], None, 16) == (1440, 736)
    assert output_size(both, [TALL, WIDE], None, 16) == (736, 1440)
    last = request(images=["aGk=", "aGk="], size_from=1)
    assert output_size(last, [WIDE, TALL], None, 16) == (736, 1440)
    with pytest.raises(JobError, match="invalid_input: size_from must be below the number of images, 2, not 2"):
        request(images=["aGk=", "aGk="], size_from=2)
    with pytest.raises(JobError, match="size_from must be a whole number from 0 to 2, not -1"):
        request(images=["aGk=", "aGk="], size_from=-1)
    assert output_size(request(image="aGk=", size="512x256"), [WIDE], None, 16) == (512, 256)
