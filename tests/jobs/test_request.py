"""What a job may ask for: defaults, aliases, seeds, and a refusal that names the field, the rule and the value."""

import subprocess
import sys

import pytest

from qwen_worker.errors import JobError
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.request import (
    MAX_SEED,
    BackgroundReplacement,
    Debug,
    Edit,
    Generate,
    Health,
    require_served,
    require_tokens,
)

from ..conftest import ROOT

PROMPT = {"prompt": "a cat"}
EDIT = {"prompt": "a cat", "image": "aGk="}


def refusal(fields):
    with pytest.raises(JobError) as caught:
        parse(fields, "job")
    assert caught.value.code == "invalid_input"
    return str(caught.value).removeprefix("invalid_input: ")


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({}, Health),
        ({"task": None, "prompt": None}, Health),
        ({"task": "health"}, Health),
        ({"task": "debug"}, Debug),
        (PROMPT, Generate),
        ({**PROMPT, "task": None}, Generate),
        (EDIT, Edit),
        ({**PROMPT, "image_url": "https://example.com/a.png"}, Edit),
        ({**PROMPT, "images": ["aGk=", "aGk="]}, Edit),
        ({**EDIT, "task": "background_replacement"}, BackgroundReplacement),
    ],
)
def test_the_task_follows_from_the_fields_when_none_is_named(fields, model):
    assert type(parse(fields, "job")) is model


def test_the_defaults_are_the_contract_s():
    request = parse(PROMPT, "job")
    assert (request.width, request.height, request.num_inference_steps, request.guidance_scale) == (1024, 1024, 50, 4)
    assert (request.num_images, request.output_format, request.negative_prompt) == (1, "auto", None)
    edit = parse(EDIT, "job")
    assert (edit.width, edit.height, edit.strength, edit.mask_image) == (None, None, 1, None)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"true_cfg_scale": 2}, "guidance_scale", 2),
        ({"guidance": 2.5}, "guidance_scale", 2.5),
        ({"cfg": 1}, "guidance_scale", 1),
        ({"steps": 7}, "num_inference_steps", 7),
        ({"n": 2}, "num_images", 2),
        ({"num_outputs": 3}, "num_images", 3),
        ({"image_format": "jpeg"}, "output_format", "jpeg"),
        ({"size": "512x768"}, "height", 768),
        ({"size": "512*768"}, "width", 512),
        ({"image_urls": ["aGk="]}, "images", ("aGk=",)),
        ({"image": "aGk=", "mask_url": "aGk="}, "mask_image", "aGk="),
    ],
)
def test_names_of_other_apis_are_understood(fields, name, value):
    assert getattr(parse({**PROMPT, **fields}, "job"), name) == value


@pytest.mark.parametrize("prompt", ["a photograph of a red fox in the snow, " * 60, "雪の中の赤い狐の写真。" * 90])
def test_prompts_are_bounded_by_their_tokens_and_by_characters_only_against_abuse(prompt):
    """Qwen's tokenizer makes 600 tokens of the first, which has 2,340 characters."""
    assert parse({"prompt": prompt, "negative_prompt": prompt}, "job").prompt == prompt


def test_the_seed_follows_from_the_job_id_and_image_k_adds_k():
    assert parse(PROMPT, "a").seed == parse({**PROMPT, "seed": -1}, "a").seed != parse(PROMPT, "b").seed
    assert parse(PROMPT, "a").seed == 0xCA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB >> (256 - 53)
    assert parse({**PROMPT, "seed": 7, "num_images": 3}, "a").seeds == [7, 8, 9]
    assert parse({**PROMPT, "seed": MAX_SEED, "num_images": 2}, "a").seeds == [MAX_SEED, 0]


def test_background_replacement_becomes_an_instruction_that_keeps_the_subject():
    request = parse({"task": "background_replacement", "prompt": " a {beach}. ", "image": "aGk="}, "job")
    assert request.instruction.startswith("Replace the background of the image with a {beach}. Keep the main subject")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "input must be an object, not a list of 0"),
        ("a cat", 'input must be an object, not "a cat"'),
        (None, "input must be an object, not null"),
        ({"task": "generate"}, "prompt is required by generate"),
        ({"negative_prompt": "x"}, "prompt is required where task is not given and the input is not empty"),
        ({"promt": "a cat", "steps": 5}, 'is not empty; this input has only "promt", "steps"'),
        ({"task": None, "mask": "aGk="}, 'is not empty; this input has only "mask"'),
        ({"prompt": ""}, "prompt must not be empty"),
        ({"prompt": " \n\t"}, "prompt must not be empty"),
        ({"prompt": "x" * 20001}, "prompt must be Unicode text of at most 20000 characters, not 20001 characters"),
        ({"prompt": "\ud800"}, "prompt must be Unicode text"),
        ({"prompt": 7}, "prompt must be Unicode text of at most 20000 characters, not 7"),
        ({"prompt": "a <|image_pad|> b"}, "prompt must not contain special tokens of the tokenizer such as <|image"),
        ({**PROMPT, "negative_prompt": "<|im_end|>"}, "negative_prompt must not contain special tokens"),
        ({**PROMPT, "width": 1000}, "width must be a whole number from 256 to 2048 and a multiple of 16, not 1000"),
        ({**PROMPT, "width": True}, "and a multiple of 16, not true"),
        ({**PROMPT, "width": "1024"}, 'and a multiple of 16, not "1024"'),
        ({**PROMPT, "width": 240}, "from 256 to 2048"),
        ({**PROMPT, "height": 2064}, "from 256 to 2048"),
        ({**PROMPT, "num_inference_steps": "50"}, 'num_inference_steps must be a whole number from 1 to 100, not "50"'),
        ({**PROMPT, "num_inference_steps": True}, "from 1 to 100, not true"),
        ({**PROMPT, "num_inference_steps": -5}, "from 1 to 100, not -5"),
        ({**PROMPT, "num_inference_steps": 10**30}, "from 1 to 100, not 1000"),
        ({**PROMPT, "num_inference_steps": 2.5}, "from 1 to 100, not 2.5"),
        ({**PROMPT, "steps": 0}, "num_inference_steps (sent as steps) must be"),
        ({**PROMPT, "guidance_scale": float("nan")}, "guidance_scale must be a number from 1 to 20, not NaN"),
        ({**PROMPT, "guidance_scale": 1e400}, "guidance_scale must be a number from 1 to 20, not Infinity"),
        ({**PROMPT, "guidance_scale": 0.5}, "from 1 to 20, not 0.5"),
        ({**PROMPT, "seed": 2**53}, "whole number from 0 to 9007199254740991, or -1, not 9007199254740992"),
        ({**PROMPT, "seed": -2}, "or -1, not -2"),
        ({**PROMPT, "num_images": 5}, "num_images must be a whole number from 1 to 4, not 5"),
        ({**PROMPT, "output_format": "gif"}, "output_format must be 'png', 'webp', 'jpeg' or 'auto', not \"gif\""),
        ({**PROMPT, "output_quality": 0}, "output_quality must be a whole number from 1 to 100, not 0"),
        ({**PROMPT, "preset": "turbo"}, "preset must be 'quality', 'balanced' or 'fast', not \"turbo\""),
        ({**PROMPT, "task": "paint"}, 'of generate, edit, background_replacement, health, debug, not "paint"'),
        ({**PROMPT, "task": ["edit"]}, "task must be one of"),
        ({**PROMPT, "stesp": 5}, '"stesp" is not a field of generate; its fields are prompt'),
        ({**PROMPT, "strength": 0.5}, '"strength" is not a field of generate'),
        ({**PROMPT, 5: 1}, "5 is not the name of a field"),
        ({**PROMPT, "\ud800": 1}, "is not the name of a field"),
        ({**PROMPT, "x" * 10_000: 1}, "xxx... is not a field of generate"),
        ({str(k): 1 for k in range(65)}, "input must have at most 64 fields, not 65"),
        ({**PROMPT, "task": ""}, "task must be one of"),
        ({**PROMPT, "task": False}, "generate, edit, background_replacement, health, debug, not false"),
        ({**PROMPT, "images": [5] * 100_000}, "images must be a list of 1 to 3 images, not a list of 100000"),
        ({"task": "health", "prompt": "x"}, '"prompt" is not a field of health; its fields are none'),
        ({**EDIT, "task": "generate"}, "image is not taken by generate; task edit takes it"),
        ({**PROMPT, "task": "edit"}, "exactly one of image, image_url, images must be given, not none"),
        ({**EDIT, "image_url": "b"}, "exactly one of image, image_url, images must be given, not image and image_url"),
        ({**PROMPT, "image": 5}, "images (sent as image) must be base64, a data URI or an http(s) URL"),
        ({**PROMPT, "image": ""}, "images (sent as image) must be base64"),
        ({**PROMPT, "image": "A" * 28_000_001}, "not 28000001 characters"),
        ({**PROMPT, "images": []}, "images must be a list of 1 to 3 images, not a list of 0"),
        ({**PROMPT, "images": ["a"] * 4}, "images must be a list of 1 to 3 images, not a list of 4"),
        ({**PROMPT, "images": "aGk="}, "images must be a list of 1 to 3 images"),
        ({**PROMPT, "images": ["a", 5]}, "images must be base64"),
        ({**EDIT, "strength": 0}, "strength must be a number above 0 and at most 1, not 0"),
        ({**EDIT, "strength": 1.01}, "strength must be a number above 0 and at most 1, not 1.01"),
        ({**PROMPT, "images": ["a", "b"], "strength": 0.5}, "mask_image and strength below 1 work on one image, not 2"),
        ({**EDIT, "width": 512}, "width and height go together"),
        ({**EDIT, "task": "background_replacement", "mask": "a"}, "mask_image is not taken by background_replacement"),
        ({**EDIT, "task": "background_replacement", "mask_from": "alpha"}, "mask_from is not taken by background_rep"),
        ({**EDIT, "mask_from": "alpha"}, "mask_from says how mask_image is read, and mask_image is not given"),
        ({**EDIT, "mask": "a", "mask_from": "black"}, "mask_from must be 'alpha' or 'white', not \"black\""),
        ({**PROMPT, "size": "512"}, 'size must be WIDTHxHEIGHT in pixels, not "512"'),
        ({**PROMPT, "size": "500x512"}, "width (sent as size) must be"),
        ({**PROMPT, "size": "512x512", "width": 512}, "width is given twice, as size and as width"),
        ({**PROMPT, "true_cfg_scale": 2, "guidance_scale": 2}, "guidance_scale is given twice"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_by_name_rule_and_value(fields, words):
    assert words in refusal(fields)


def test_no_refusal_is_long():
    assert len(refusal({f"unknown{k}" * 50: "x" * 100_000 for k in range(60)})) < 30_000


def test_a_job_id_of_any_characters_gives_a_seed():
    assert 0 <= parse(PROMPT, "\ud800").seed <= MAX_SEED


def test_several_mistakes_are_told_at_once():
    text = refusal({"prompt": "", "width": 1, "steps": 0})
    assert "prompt" in text and "width" in text and "steps" in text


def test_a_value_is_never_echoed_whole():
    assert len(refusal({**PROMPT, "output_format": "x" * 10_000})) < 300


def test_what_the_checkpoint_cannot_is_refused_with_both_numbers():
    with pytest.raises(JobError, match="width must be a multiple of 32 for this checkpoint, not 272"):
        require_served(parse({**PROMPT, "width": 272, "height": 256}, "a"), 32, 0)
    with pytest.raises(JobError, match="prompt must be at most 1019 tokens, not 1020"):
        require_tokens("prompt", 1020)
    require_tokens("prompt", 1019)


def test_importing_the_worker_imports_no_heavy_library():
    heavy = {"torch", "diffusers", "transformers", "runpod", "huggingface_hub"}
    code = f"import sys, runpod_handler; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
