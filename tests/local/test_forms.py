"""A form of OpenAI's client becomes the JSON object that says the same."""

import asyncio
import base64

import pytest
import requests

from qwen_local.forms import put, read_form
from qwen_local.request import BadRequest


def read(data, files):
    """What the form is read as that `requests` makes of these."""
    prepared = requests.Request("POST", "http://x", data=data, files=files).prepare()
    return asyncio.run(read_form(prepared.body, prepared.headers["Content-Type"]))


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_files_become_data_uris_and_truths_become_booleans():
    fields = {"prompt": "true", "n": "2", "preview": "true", "stream": "false", "size": "256x256"}
    files = [("image", ("a.webp", b"one", "image/webp")), ("mask", ("m", b"two", "text/html; charset=x"))]
    assert read(fields, files) == {
        "prompt": "true", "n": "2", "preview": True, "stream": False, "size": "256x256",
        "image": uri(b"one", "image/webp"), "mask": uri(b"two"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_several_files_are_a_list(name):
    assert read({"prompt": "a"}, [(name, ("a", b"one")), (name, ("b", b"two"))])["image"] == [uri(b"one"), uri(b"two")]


def test_lists_of_objects_are_read_as_openai_s_client_writes_them():
    arguments = {}
    for name, value in [
        ("loras[][path]", "A/b"), ("loras[][scale]", "1"), ("loras[][path]", "C/d"), ("parameters[seed]", "7"),
    ]:  # fmt: skip
        put(arguments, name, value)
    assert arguments == {"loras": [{"path": "A/b", "scale": "1"}, {"path": "C/d"}], "parameters": {"seed": "7"}}


@pytest.mark.parametrize(
    "names", [["a[", "b"], ["a[b]", "a"], ["a", "a[b]"], ["a[]", "a[b]"], ["a", "a[]"], ["]", "b"]]
)
def test_names_that_fit_no_object_are_refused(names):
    arguments = {}
    with pytest.raises(BadRequest):
        for name in names:
            put(arguments, name, "x")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_a_form_that_cannot_be_read_is_refused(kind):
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    with pytest.raises(BadRequest, match="The form cannot be read"):
        asyncio.run(read_form(body, kind))


def test_a_form_with_very_many_fields_is_refused():
    with pytest.raises(BadRequest, match="The form cannot be read: Too many fields"):
        read({f"field-{number}": "x" for number in range(300)}, {"image": b"x"})
