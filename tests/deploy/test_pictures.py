"""What counts as a picture in a reply."""

import base64
import io

import pytest
from PIL import Image

from qwen_deploy.errors import NotServing
from qwen_deploy.pictures import identify_picture, read_pictures

from ..conftest import respond
from .conftest import NEW, SHIP
from .fake_runpod import KEY, Build, a_picture, draws


def file_of(format):
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((48, 32)).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format, name", [("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpg")])
def test_a_whole_picture_is_told_by_its_header_and_a_cut_one_refused(format, name):
    data = file_of(format)
    assert identify_picture(data).format == name
    with pytest.raises(NotServing, match="no whole PNG, WebP or JPEG"):
        identify_picture(data[: len(data) // 2])


def test_a_png_tells_its_size():
    assert (identify_picture(file_of("PNG")).width, identify_picture(file_of("PNG")).height) == (48, 32)


@pytest.mark.parametrize("field", ["image", "images"])
def test_pictures_come_in_base64_and_as_data_uris(field):
    text = base64.b64encode(file_of("PNG")).decode()
    for one in (text, f"data:image/png;base64,{text}"):
        assert [found.data for found in read_pictures({field: one if field == "image" else [one]})] == [file_of("PNG")]


@pytest.mark.parametrize(
    "reply",
    [
        lambda url: {"image_url": url, "result": url},
        lambda url: {"images": [{"url": url, "width": 48, "height": 32}]},
        lambda url: {"output": [url], "status": "succeeded"},
    ],
)
def test_pictures_are_found_in_every_shape_of_a_reply(reply):
    url = f"data:image/png;base64,{base64.b64encode(file_of('PNG')).decode()}"
    assert [found.data for found in read_pictures(reply(url))] == [file_of("PNG")]


@pytest.mark.parametrize("reply", [{}, {"output": []}, {"images": [{"width": 48}]}, {"images": [7]}, {"image": ""}])
def test_a_reply_without_a_picture_is_said_so(reply):
    with pytest.raises(NotServing, match="holds no picture"):
        read_pictures(reply)


def test_a_picture_by_url_is_fetched_without_the_key(web):
    seen = []

    def answer(handler):
        seen.append(dict(handler.headers))
        respond(handler, file_of("PNG"))

    (found,) = read_pictures({"image_url": web(answer) + "/picture.png"})
    assert found.format == "png" and "Authorization" not in seen[0] and KEY not in str(seen)


def test_a_url_that_is_gone_is_said_so_without_its_signature(web):
    address = web(lambda handler: respond(handler, b"", 403))
    with pytest.raises(NotServing) as refused:
        read_pictures({"image_url": f"{address}/picture.png?X-Amz-Signature=s3cr3t"})
    assert "could not be fetched from 127.0.0.1" in str(refused.value) and "s3cr3t" not in str(refused.value)


def test_a_picture_of_another_size_than_told_is_rolled_back(runpod, command):
    def answer(fields, env):
        return draws("v1")(fields, env) | ({"image": a_picture(32, 64)} if fields["task"] == "edit" else {})

    runpod.add()
    runpod.builds[NEW] = Build(answer)
    code, text = command(*SHIP)
    assert code == 1 and "edit: the picture must be 64x64 as its metadata says, not 32x64" in text
