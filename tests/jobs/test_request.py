"""What a job may ask for: defaults, aliases, seeds, and a refusal that names the field, the rule and the value."""

import subprocess
import sys

import pytest

from qwen_worker.errors import JobError
from qwen_worker.jobs.field_types import Lora
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import DrawingResult, drawing_facts
from qwen_worker.jobs.request import MAX_SEED, BackgroundReplacement, Edit, Generate
from qwen_worker.jobs.served import Limits, require_served, require_tokens
from qwen_worker.jobs.tasks import Debug, Health
from qwen_worker.settings import Settings

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
        ({"size": "512*768"}, "size", "512x768"),
        ({"image_urls": ["aGk="]}, "images", ("aGk=",)),
        ({"image": "aGk=", "mask_url": "aGk="}, "mask_image", "aGk="),
    ],
)
def test_names_of_other_apis_are_understood(fields, name, value):
    assert getattr(parse({**PROMPT, **fields}, "job"), name) == value


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"num_inference_steps": 20.0}, "num_inference_steps", 20),
        ({"steps": "20"}, "num_inference_steps", 20),
        ({"steps": "20.0"}, "num_inference_steps", 20),
        ({"width": "512", "height": 512.0}, "width", 512),
        ({"guidance_scale": "4.5"}, "guidance_scale", 4.5),
        ({"guidance_scale": 0}, "guidance_scale", 1),
        ({"cfg": "0"}, "guidance_scale", 1),
        ({"seed": "42"}, "seed", 42),
        ({"seed": 815512498217549870}, "seed", 815512498217549870),
        ({"seed": "18446744073709551615"}, "seed", 2**64 - 1),
        ({"num_images": "2"}, "num_images", 2),
        ({"image": "aGk=", "strength": "0.5"}, "strength", 0.5),
        ({"loras": [{"path": "a/b", "scale": "0.5"}]}, "loras", (Lora(path="a/b", scale=0.5),)),
        ({"steps": 20, "num_inference_steps": "20"}, "num_inference_steps", 20),
        ({"size": "512x768", "width": "512", "height": 768}, "height", 768),
    ],
)
def test_numbers_are_read_as_clients_write_them(fields, name, value):
    found = getattr(parse({**PROMPT, **fields}, "job"), name)
    assert found == value and type(found) in (type(value), float)


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"guidance_scale": 1.0}, "guidance_scale 1.0"), ({"cfg": "x"}, 'cfg "x"'), ({"guidance_scale": 4}, ""), ({}, "")],
)
def test_of_two_guidances_the_true_one_wins(fields, told):
    warnings = []
    request = parse({**PROMPT, **fields, "true_cfg_scale": "4"}, "job", warn=warnings.append)
    words = f"{told} has no effect beside true_cfg_scale, which is the guidance used"
    assert request.guidance_scale == 4 and warnings == ([words] if told else [])


def test_a_seed_that_javascript_rounds_comes_back_as_text_too():
    def facts(seed):
        request = parse({**PROMPT, "seed": seed, "num_images": 2}, "job")
        return drawing_facts(request, (8, 8), (8, 8), DrawingResult([], 0), "model", Settings())

    large, small = facts(815512498217549870), facts(2**53 - 2)
    assert (large["seed"], large["seed_text"]) == (815512498217549870, "815512498217549870")
    assert large["seeds_text"] == ["815512498217549870", "815512498217549871"]
    assert "seed_text" not in small and "seeds_text" not in small


@pytest.mark.parametrize("prompt", ["a photograph of a red fox in the snow, " * 60, "雪の中の赤い狐の写真。" * 90])
def test_prompts_are_bounded_by_their_tokens_and_by_characters_only_against_abuse(prompt):
    """Qwen's tokenizer makes 600 tokens of the first, which has 2,340 characters."""
    assert parse({"prompt": prompt, "negative_prompt": prompt}, "job").prompt == prompt


def test_the_seed_follows_from_the_job_id_and_image_k_adds_k():
    assert parse(PROMPT, "a").seed == parse({**PROMPT, "seed": -1}, "a").seed != parse(PROMPT, "b").seed
    assert parse(PROMPT, "a").seed == 0xCA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB >> (256 - 53)
    assert parse({**PROMPT, "seed": 7, "num_images": 3}, "a").seeds == [7, 8, 9]
    assert parse({**PROMPT, "seed": MAX_SEED, "num_images": 2}, "a").seeds == [MAX_SEED, 0]
    assert parse({**PROMPT, "seed": 2**53 - 1, "num_images": 2}, "a").seeds == [2**53 - 1, 2**53]


def test_torch_takes_the_largest_seed():
    import torch

    assert torch.Generator("cpu").manual_seed(MAX_SEED).initial_seed() == MAX_SEED


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
        ({**PROMPT, "width": 1000}, "of 16, not 1000; the nearest are 992 and 1008, or 992 and 1024 where the"),
        ({**PROMPT, "width": 1472, "height": 1140}, "not 1140; the nearest are 1136 and 1152"),
        ({**PROMPT, "width": 1920, "height": 1080}, "not 1080; the nearest are 1072 and 1088"),
        ({**PROMPT, "width": 5000}, "from 256 to 2752 and a multiple of 16, not 5000"),
        ({**PROMPT, "width": True}, "and a multiple of 16, not true"),
        ({**PROMPT, "width": "1024px"}, 'and a multiple of 16, not "1024px"'),
        ({**PROMPT, "width": 240}, "from 256 to 2752"),
        ({**PROMPT, "height": 2768}, "from 256 to 2752"),
        ({**PROMPT, "steps": "50x"}, '(sent as steps) must be a whole number from 1 to 100, not "50x"'),
        ({**PROMPT, "steps": "NaN"}, 'not "NaN"'),
        ({**PROMPT, "steps": "1e1"}, 'not "1e1"'),
        ({**PROMPT, "steps": "٤"}, "from 1 to 100, not"),
        ({**PROMPT, "guidance_scale": "4x"}, 'guidance_scale must be 0 or a number from 1 to 20, not "4x"'),
        ({**PROMPT, "guidance_scale": False}, "0 or a number from 1 to 20, not false"),
        ({**PROMPT, "guidance_scale": -1}, "0 or a number from 1 to 20, not -1"),
        ({**PROMPT, "num_inference_steps": True}, "from 1 to 100, not true"),
        ({**PROMPT, "num_inference_steps": -5}, "from 1 to 100, not -5"),
        ({**PROMPT, "num_inference_steps": 10**30}, "from 1 to 100, not 1000"),
        ({**PROMPT, "num_inference_steps": 2.5}, "from 1 to 100, not 2.5"),
        ({**PROMPT, "steps": 0}, "num_inference_steps (sent as steps) must be"),
        ({**PROMPT, "guidance_scale": float("nan")}, "guidance_scale must be 0 or a number from 1 to 20, not NaN"),
        ({**PROMPT, "guidance_scale": 1e400}, "guidance_scale must be 0 or a number from 1 to 20, not Infinity"),
        ({**PROMPT, "guidance_scale": 0.5}, "0 or a number from 1 to 20, not 0.5"),
        ({**PROMPT, "seed": 2**64}, "whole number from 0 to 18446744073709551615, or -1, not 18446744073709551616"),
        ({**PROMPT, "seed": 2.0**60}, "or -1, not 1.152921504606847e+18"),
        ({**PROMPT, "seed": -2}, "or -1, not -2"),
        ({**PROMPT, "num_images": 5}, "num_images must be a whole number from 1 to 4, not 5"),
        ({**PROMPT, "output_format": "gif"}, "output_format must be 'png', 'webp', 'jpeg', 'avif' or 'auto', not"),
        ({**PROMPT, "output_quality": 101}, "output_quality must be a whole number from 1 to 100, not 101"),
        ({**PROMPT, "preset": "turbo"}, "preset must be 'quality', 'balanced' or 'fast', not \"turbo\""),
        ({**PROMPT, "task": "paint"}, 'background_replacement, layers, health, debug, schema, not "paint"'),
        ({**PROMPT, "task": ["edit"]}, "task must be one of"),
        ({**PROMPT, "stesp": 5}, '"stesp" is not a field of generate (did you mean steps?); its fields are prompt'),
        ({**PROMPT, "source_image": "x"}, "is not a field of generate (did you mean image?)"),
        ({**PROMPT, "img_url": "x"}, "is not a field of generate (did you mean image_url?)"),
        ({**PROMPT, "photo": "x"}, "is not a field of generate (did you mean image?)"),
        ({**PROMPT, "num_image": 2}, "is not a field of generate (did you mean num_images?)"),
        ({**EDIT, "picture": "x"}, "is not a field of edit (did you mean image?)"),
        ({**PROMPT, "aspect_ratio": "16x9"}, "not 16; an aspect ratio is written 16:9"),
        ({**PROMPT, "mask": "aGk="}, "mask_image is about an input picture, and none is given: send image"),
        ({**PROMPT, "size_from": 1}, '"size_from" is not a field of generate (task edit takes it); its fields are'),
        ({**PROMPT, 5: 1}, "5 is not the name of a field"),
        ({**PROMPT, "\ud800": 1}, "is not the name of a field"),
        ({**PROMPT, "x" * 10_000: 1}, "xxx... is not a field of generate"),
        ({str(k): 1 for k in range(65)}, "input must have at most 64 fields, not 65"),
        ({**PROMPT, "task": ""}, "task must be one of"),
        ({**PROMPT, "task": False}, "generate, edit, background_replacement, layers, health, debug, schema, not false"),
        ({**PROMPT, "images": [5] * 100_000}, "images must be a list of 1 to 10 images, not a list of 100000"),
        ({"task": "health", "prompt": "x"}, '"prompt" is not a field of health; its fields are none'),
        ({**EDIT, "task": "health"}, "image is not taken by health; task edit takes it"),
        ({**PROMPT, "task": "edit"}, "exactly one of image, image_url, images must be given, not none"),
        ({**EDIT, "image_url": "b"}, "exactly one of image, image_url, images must be given, not image and image_url"),
        ({**PROMPT, "image": 5}, "images (sent as image) must be base64, a data URI or an http(s) URL"),
        ({**PROMPT, "image": ""}, "images (sent as image) must be base64"),
        ({**PROMPT, "image": "A" * 28_000_001}, "not 28000001 characters"),
        ({**PROMPT, "images": []}, "images must be a list of 1 to 10 images, not a list of 0"),
        ({**PROMPT, "images": ["a"] * 11}, "images must be a list of 1 to 10 images, not a list of 11"),
        ({**PROMPT, "images": "aGk="}, "images must be a list of 1 to 10 images"),
        ({**PROMPT, "images": ["a", 5]}, "images must be base64"),
        ({**EDIT, "strength": 0}, "strength must be a number above 0 and at most 1, not 0"),
        ({**EDIT, "strength": 1.01}, "strength must be a number above 0 and at most 1, not 1.01"),
        ({**PROMPT, "images": ["a", "b"], "strength": 0.5}, "mask_image and strength below 1 work on one image, not 2"),
        ({**EDIT, "width": 512}, "width and height go together"),
        ({**EDIT, "width": 512, "size": "1K"}, "width and height go together"),
        ({**EDIT, "width": 512, "size": "1024x768"}, "width is given twice, as size (1024) and as width (512)"),
        ({**EDIT, "task": "background_replacement", "mask": "a"}, "mask_image is not taken by background_replacement"),
        ({**EDIT, "task": "background_replacement", "mask_from": "alpha"}, "mask_from is not taken by background_rep"),
        ({**EDIT, "mask_from": "alpha"}, "mask_from says how mask_image is read, and mask_image is not given"),
        ({**EDIT, "mask": "a", "mask_from": "black"}, "mask_from must be 'alpha' or 'white', not \"black\""),
        ({**PROMPT, "size": "512"}, "size must be WIDTHxHEIGHT in pixels, WIDTH:HEIGHT as an aspect ratio, '1K', "
                                        "'2K', 'match_input' or 'auto', not \"512\""),
        ({**PROMPT, "size": "250x512"}, "width (sent as size) must be"),
        ({**PROMPT, "image_size": "huge"}, "image_size must be one of square, square_hd, portrait_4_3, "),
        ({**PROMPT, "image_size": {"width": "a", "height": 512}}, "an object of width and height alone, both whole"),
        ({**PROMPT, "image_size": {"width": 512}}, "image_size must be an object of width and height alone"),
        ({**PROMPT, "image_size": {"width": 4096, "height": 512}}, "width (sent as image_size) must be"),
        ({**PROMPT, "size": "512x512", "width": 528}, "width is given twice, as size (512) and as width (528), and "),
        ({**PROMPT, "cfg": 2, "guidance_scale": "3"}, 'twice, as cfg (2) and as guidance_scale ("3"), and the two'),
        ({**PROMPT, "true_cfg_scale": 2, "true_guidance_scale": 3}, "guidance_scale is given twice"),
        ({**PROMPT, "n": True, "num_outputs": 1}, "num_images is given twice, as n (true) and as num_outputs (1)"),
        ({**PROMPT, "true_cfg_scale": "x", "guidance_scale": 2}, "guidance_scale (sent as true_cfg_scale) must be"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_by_name_rule_and_value(fields, words):
    assert words in refusal(fields)


def test_no_refusal_is_long():
    assert len(refusal({f"unknown{k}" * 50: "x" * 100_000 for k in range(60)})) < 6_000


def test_the_fields_of_a_task_are_listed_once_in_a_refusal():
    words = refusal({**PROMPT, "colour": 1, "steps": 0, "shade": 1})
    assert words.count("its fields are") == 1 and words.endswith("fit")
    assert '"colour" is not a field of generate; ' in words and '"shade" is not a field of generate' in words


def test_a_job_id_of_any_characters_gives_a_seed():
    assert 0 <= parse(PROMPT, "\ud800").seed <= MAX_SEED


def test_several_mistakes_are_told_at_once():
    text = refusal({"prompt": "", "width": 1, "steps": 0})
    assert "prompt" in text and "width" in text and "steps" in text


def test_a_value_is_never_echoed_whole():
    assert len(refusal({**PROMPT, "output_format": "x" * 10_000})) < 300


def test_what_the_checkpoint_cannot_is_refused_with_both_numbers():
    with pytest.raises(JobError, match="of 32 for this checkpoint, not 272; the nearest are 256 and 288"):
        require_served(parse({**PROMPT, "width": 272, "height": 256}, "a"), Limits(32, 2048, 0))
    with pytest.raises(JobError, match="width must be at most 2048 for this checkpoint, not 2752"):
        require_served(parse({**PROMPT, "width": 2752, "height": 1536}, "a"), Limits(32, 2048, 0))
    with pytest.raises(JobError, match="prompt must be at most 1019 tokens, not 1020"):
        require_tokens("prompt", 1020)
    require_tokens("prompt", 1019)


def test_importing_the_worker_imports_no_heavy_library():
    heavy = {"torch", "diffusers", "transformers", "runpod", "huggingface_hub", "numpy", "cv2", "imagecodecs", "gguf"}
    code = f"import sys, runpod_handler; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
