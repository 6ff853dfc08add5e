"""Each shape of a reply has what its API documents under the documented names, and the worker's metadata beside it."""

import base64
from typing import get_args

import jsonschema
import pytest

from qwen_worker.delivery_settings import ResponseShape
from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import success_reply
from qwen_worker.jobs.request import Drawing
from qwen_worker.jobs.response_shapes import FOREIGN, Files, shape_of, shaped_reply
from qwen_worker.settings import Settings

METADATA = {
    "model": "Qwen/Qwen-Image", "revision": "75e0b4be", "backend": "qwen-image", "prompt": "a fox", "width": 512,
    "height": 256, "seed": 7, "seeds": [7], "timings": {"input": 0.0, "inference": 1.5}, "processing_time": 1.5,
}  # fmt: skip
# What fal publishes as the output of its image models: `QwenImageOutput` of its client, where a list of what has been
# checked is required; here it is missing where nothing has been.
FAL = {
    "type": "object",
    "required": ["images", "timings", "seed", "prompt"],
    "properties": {
        "images": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["url", "width", "height", "content_type"],
                "properties": {
                    "url": {"type": "string", "pattern": "^(https?://|data:image/)"},
                    "width": {"type": "integer"},
                    "height": {"type": "integer"},
                    "content_type": {"enum": ["image/png", "image/jpeg", "image/webp"]},
                },
            },
        },
        "timings": {"type": "object", "required": ["inference"], "additionalProperties": {"type": "number"}},
        "seed": {"type": "integer"},
        "has_nsfw_concepts": {"type": "array", "items": {"type": "boolean"}},
        "prompt": {"type": "string"},
    },
}
# The fields of Replicate's documented prediction that the reply has, with their documented types.
REPLICATE = {
    "type": "object",
    "required": ["status", "output", "model", "version", "metrics"],
    "properties": {
        "status": {"const": "succeeded"},
        "output": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^(https?://|data:image/)"}},
        "model": {"type": "string"},
        "version": {"type": ["string", "null"]},
        "metrics": {"type": "object", "required": ["predict_time"], "additionalProperties": {"type": "number"}},
    },
}


def reply_in(shape, texts=("aGk=",), by_url=False, **metadata):
    request = parse({"prompt": "a fox"}, "job")
    return shaped_reply(ResponseShape(shape), request, METADATA | metadata, Files(list(texts), "image/png", by_url))


def test_the_field_has_the_values_of_the_setting():
    (literal, _) = get_args(Drawing.model_fields["response_shape"].annotation)
    assert list(get_args(get_args(literal)[0])) == [shape.value for shape in ResponseShape]
    assert set(FOREIGN) == set(ResponseShape) - {ResponseShape.WORKER}


@pytest.mark.parametrize("texts", [["a"], ["a", "b"]])
def test_the_worker_s_own_shape_is_its_reply(texts):
    request = parse({"prompt": "a fox"}, "job")
    assert reply_in("worker", texts) == success_reply(request, METADATA, texts)
    assert reply_in("worker", texts, by_url=True) == success_reply(request, METADATA, texts, "image_url")


@pytest.mark.parametrize("shape", FOREIGN)
def test_metadata_stays_in_each_shape_and_nothing_of_the_worker_s_own_names(shape):
    reply = reply_in(shape)
    assert reply["metadata"] == METADATA
    assert not {"success", "message", "image", "error"} & set(reply)


@pytest.mark.parametrize("shape", FOREIGN)
def test_a_file_in_the_reply_is_a_url_that_holds_it(shape):
    reply = reply_in(shape, [base64.b64encode(b"a file").decode()])
    urls = [picture["url"] for picture in reply.get("images", [])] + reply.get("output", [])
    urls += [reply[name] for name in ("image_url", "result") if name in reply]
    assert urls
    for url in urls:
        head, _, body = url.partition(",")
        assert head == "data:image/png;base64" and base64.b64decode(body) == b"a file"


def test_runpod_s_shape_has_the_first_url_under_both_names_and_a_list_of_several():
    urls = ["https://a/0", "https://a/1"]
    one = reply_in("runpod-public", urls[:1], by_url=True)
    assert one == {"image_url": urls[0], "result": urls[0], "metadata": METADATA}
    assert reply_in("runpod-public", urls, by_url=True) == one | {"image_urls": urls}


@pytest.mark.parametrize("by_url", [False, True])
def test_fal_s_shape_is_the_documented_one(by_url):
    texts = ["https://a/0", "https://a/1"] if by_url else ["aGk=", "aG8="]
    reply = reply_in("fal", texts, by_url)
    jsonschema.validate(reply, FAL)
    assert len(reply["images"]) == 2 and (reply["images"][0]["width"], reply["images"][0]["height"]) == (512, 256)
    assert (reply["seed"], reply["prompt"], reply["timings"]) == (7, "a fox", METADATA["timings"])


def test_fal_s_verdicts_are_there_only_where_something_has_looked_at_the_pictures():
    assert "has_nsfw_concepts" not in reply_in("fal")
    assert reply_in("fal", has_nsfw_concepts=[False])["has_nsfw_concepts"] == [False]


@pytest.mark.parametrize("revision", ["75e0b4be", None])
def test_replicate_s_shape_is_of_its_documented_prediction(revision):
    reply = reply_in("replicate", ["aGk=", "aG8="], revision=revision)
    jsonschema.validate(reply, REPLICATE)
    assert len(reply["output"]) == 2 and reply["metrics"] == {"predict_time": 1.5}


def test_a_job_chooses_its_shape_and_else_the_endpoint_does():
    fal = Settings(QWEN_RESPONSE_SHAPE="fal")
    for fields, expected in (({}, "fal"), ({"response_shape": None}, "fal"), ({"response_shape": "worker"}, "worker")):
        assert shape_of(parse({"prompt": "a fox", **fields}, "job"), fal) == expected
    assert shape_of(parse({"prompt": "a fox"}, "job"), Settings()) is ResponseShape.WORKER


@pytest.mark.parametrize("value", ["openai", "FAL", "", 1, ["fal"]])
def test_any_other_shape_is_refused_with_those_that_there_are(value):
    with pytest.raises(InvalidInput, match="response_shape must be 'worker', 'runpod-public', 'fal' or 'replicate', "):
        parse({"prompt": "a fox", "response_shape": value}, "job")
    with pytest.raises(InvalidInput, match='"response_shape" is not a field of health'):
        parse({"task": "health", "response_shape": "fal"}, "job")
