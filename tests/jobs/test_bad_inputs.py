"""Inputs made to take long: a refusal, in no more time than a good job's parsing takes, whichever field they are in."""

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.aliases import NAMES
from qwen_worker.jobs.openai_images import EDITS, call_of
from qwen_worker.jobs.parsing import parse

from ..support.patience import little_work

DEPTH = 100_000
SECONDS = 1.0  # of the processor, for one refusal; a good job's parsing takes a thousandth of it


def nested(kind):
    """Lists within lists, or objects within objects, deeper than Python can compare or print."""
    inner = []
    for _ in range(DEPTH):
        inner = [inner] if kind == "list" else {"a": inner}
    return inner


def refusal(fields):
    """The sentence that refuses the job; empty where it is accepted."""
    with little_work(SECONDS):
        try:
            parse(fields, "job")
            text = ""
        except InvalidInput as error:
            text = str(error)
    assert len(text) < 30_000
    return text


@pytest.mark.parametrize("kind", ["list", "object"])
def test_no_field_takes_an_object_that_is_too_deep_to_compare(kind):
    deep, other = nested(kind), nested(kind)
    accepted = set()
    for name in sorted(NAMES) + ["unknown"]:
        if not refusal({"prompt": "a", name: deep}):
            accepted.add(name)
        refusal({"prompt": "a", name: deep, "parameters": {name: other}})
    # These say who calls, or are told as having no effect; nothing reads what is in them.
    assert accepted <= {name for name in NAMES if not refusal({"prompt": "a", name: {"x": 1}})}
    assert refusal({"prompt": "a", "image": deep, "images": [deep]}) and refusal({"prompt": "a", "loras": [deep]})
    assert refusal({"prompt": "a", "image1": deep, "image2": other})
    assert refusal({"messages": [{"content": deep}]}) and refusal({"messages": deep}) and refusal(deep)


def many(prefix="field"):
    return {f"{prefix}{number}": number for number in range(10_000)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (many(), "input must have at most 64 fields, not 10000"),
        ({"prompt": "a", "parameters": many()}, "parameters must have at most 64 fields, not 10000"),
        ({"prompt": "a", "extra_body": many("num_Images")}, "extra_body must have at most 64 fields"),
        ({**dict(list(many().items())[:60]), "parameters": dict(list(many("x").items())[:60])}, "not 120"),
        ({"prompt": "a", "image_size": many()}, "image_size must be an object of width and height alone"),
        ({"prompt": "a", "loras": [many()]}, "loras[0].path is required"),
        ({"prompt": "a", "loras": ["a/b"] * 10_000}, "loras must be a list of at most 4 objects"),
        ({"prompt": "a", "lora_weights": ["a/b"] * 10_000}, "loras must be a list of at most 4 objects"),
        ({"prompt": "a", "reference_images": ["aGk="] * 10_000, "image": "aGk="}, "images must be a list of 1 to 10"),
        ({"messages": [{"content": [{"text": "a"}] * 100_000}]}, "prompt must be Unicode text of at most 20000"),
        ({"prompt": "a", "aspect_ratio": "1" * 100_000 + ":1"}, "aspect_ratio must be WIDTHxHEIGHT in pixels"),
        ({"prompt": "a", "size": "1x" * 100_000}, "size must be WIDTHxHEIGHT in pixels"),
        ({"prompt": "a", "seed": "1" * 100_000}, "seed must be a whole number"),
        ({"prompt": "a", "seed": 10**5000}, "seed must be a whole number"),
        ({"prompt": "a", "size": 10**5000}, "or 'auto', not int"),
        ({"prompt": "a", "image_size": {"width": 10**5000, "height": 512}}, "from 256 to 2752, not int"),
        ({"prompt": "a", "aB" * 100_000: 1}, "is not a field of generate"),
        ({"prompt": "a", "model": "\ud800" * 100_000, "aspect_ratio": "9:1"}, "aspect_ratio must be from 1:8 to 8:1"),
        ({"prompt": "a\ud800"}, "prompt must be Unicode text"),
        ({"prompt": "a", "size": "\ud800x\ud800"}, "size must be WIDTHxHEIGHT in pixels"),
        ({"prompt": "a", "parameters": {"\ud800": 1}}, "is not the name of a field"),
        ({"prompt": "a", "loras": [{"path": "\ud800"}]}, "loras[0].path must be"),
    ],
)
def test_much_of_anything_is_refused_at_once(fields, words):
    assert words in refusal(fields)


def test_an_openai_call_of_ten_thousand_fields_is_refused_at_once():
    call = call_of({"openai_route": EDITS, "openai_input": {"image": ["x"] * 10_000, **many()}}, {"edit": "a/b"})
    assert "input must have at most 64 fields, not 10003" in refusal(call.fields())
