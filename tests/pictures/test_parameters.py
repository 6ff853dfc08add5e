"""How a picture was drawn stands in its file where the job asks, for the programs that people use, and else nowhere."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from qwen_worker.errors import InvalidInput
from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures.colour import PROFILE
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.marks import Origin
from qwen_worker.pictures.parameters import embed_parameters

from ..conftest import as_text, run
from ..support import profiles
from ..support.certificates import key_pem, signing_pair
from .test_marks import by_exiftool, by_exiv2, by_pillow, marked

FORMATS = ["png", "jpeg", "webp"]
CODES = ("utf-8", "utf-16-le", "utf-16-be")
SMALL = {"width": 256, "height": 256, "num_inference_steps": 2, "seed": 7}
FACTS = {
    "backend": "qwen-image", "model": "Qwen/Qwen-Image", "revision": "abc", "width": 320, "height": 256,
    "dimensions": "320x256", "preset": "quality", "steps": 2, "guidance_scale": 4.0, "worker_version": "1.2.3",
    "peak_vram_gb": 3.0, "seed": 7, "seeds": [7],
}  # fmt: skip
SCRIPTS = "a red fox, “naïve” 魚と狐 лиса 🦊👩‍👩‍👧 ﷽ e\u0301 עברית\ttab\r\nNegative prompt: no\nSteps: 4"


def embedded(picture, **fields):
    picture = picture.copy()
    request = parse({"prompt": "a fox", "seed": 7, "embed_parameters": True, **fields}, "job")
    embed_parameters([picture], request, FACTS | {"prompt": request.prompt})
    return picture


def by_web_ui(file):
    """The text as AUTOMATIC1111's web UI reads it: with Pillow, and with piexif's rule for UserComment."""
    picture = Image.open(io.BytesIO(file))
    if picture.format == "PNG":
        return picture.info["parameters"]
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return comment[8:].decode("utf_16_be")


def values_of(text):
    """The names and values of the text's last line, split as the web UI splits them."""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.splitlines()[-1])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", ["a fox", "café", SCRIPTS, 'quotes "and" commas, a: b \\ end'])
def test_foreign_readers_find_the_text_and_the_json(output_format, prompt):
    file = encode_picture(
        embedded(Image.effect_noise((320, 256), 60), prompt=prompt, negative_prompt="雨"), output_format
    )
    text = by_web_ui(file)
    assert text == (
        f"{prompt}\nNegative prompt: 雨\nSteps: 2, CFG scale: 4.0, Seed: 7, Size: 320x256, Model: Qwen/Qwen-Image"
    )
    names = ("Parameters", "Parameters_json") if output_format == "png" else ("UserComment", "XPComment")
    found = by_exiftool(file, *(f"-{name}" for name in names))
    assert found[names[0]] == text
    assert json.loads(found[names[1]]) == {
        "task": "generate", "prompt": prompt, "negative_prompt": "雨", "seed": 7, "num_inference_steps": 50,
        "backend": "qwen-image",
        "model": "Qwen/Qwen-Image", "revision": "abc", "width": 320, "height": 256, "preset": "quality", "steps": 2,
        "guidance_scale": 4.0, "worker_version": "1.2.3",
    }  # fmt: skip


def test_a_png_s_text_is_in_the_chunk_that_all_readers_know_where_it_is_ascii():
    plain, other = (encode_picture(embedded(Image.new("L", (64, 64)), prompt=text), "png") for text in ("fox", "café"))
    assert b"tEXtparameters\0fox" in plain and b"iTXt" not in plain
    assert b"iTXtparameters\0" in other and "café".encode() in other and b"caf\xe9" not in other


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_exiv2_reads_them_too(output_format):
    picture = embedded(Image.effect_noise((320, 256), 60), prompt="魚 and a café")
    found = by_exiv2(encode_picture(picture, output_format))
    assert found["Exif.Photo.UserComment"].removeprefix("charset=Unicode ").startswith("魚 and a café\nSteps: 2, CFG")
    assert json.loads(found["Exif.Image.XPComment"].rstrip("\0"))["prompt"] == "魚 and a café"


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("kind", ["RGB", "grey", "P3"])
def test_pixels_colours_and_the_mark_are_as_without(output_format, kind):
    picture = Image.effect_noise((320, 256), 60)
    if kind != "grey":
        picture = picture.convert("RGB")
    picture.info[PROFILE] = {"RGB": None, "grey": profiles.grey(), "P3": profiles.DISPLAY_P3}[kind]
    picture = marked(picture, Origin.EDITED)
    plain, file = encode_picture(picture, output_format), encode_picture(embedded(picture), output_format)
    before, after = (Image.open(io.BytesIO(one)) for one in (plain, file))
    assert np.array_equal(np.asarray(before), np.asarray(after)) and before.mode == after.mode
    assert before.info.get(PROFILE) == after.info.get(PROFILE) and before.info.get("srgb") == after.info.get("srgb")
    assert by_pillow(file) == by_pillow(plain)
    assert "Error" not in by_exiftool(file, "-validate", "-warning", "-error")


@pytest.mark.parametrize("output_format", FORMATS)
def test_each_picture_of_a_job_has_its_own_seed_and_the_metadata_s_values(ask, output_format):
    prompt = "a large red circle, 魚"
    reply = ask(**SMALL, prompt=prompt, num_images=2, embed_parameters=True, output_format=output_format)["output"]
    facts = reply["metadata"]
    for text, seed in zip(reply["images"], (7, 8), strict=True):
        found = by_web_ui(base64.b64decode(text))
        assert found.splitlines()[0] == prompt and values_of(found) == {
            "Steps": "2", "CFG scale": "4.0", "Seed": str(seed), "Size": "256x256", "Model": facts["model"],
        }  # fmt: skip


def test_the_largest_seed_a_strength_and_loras_are_told_without_secrets(cold_worker, scene):
    worker = cold_worker(QWEN_FALLBACK="force")
    path = "https://me:password@example.com/my/lora.safetensors"
    job = {
        "prompt": "make it green", "image": as_text(scene), "strength": 0.5, "seed": 2**64 - 1,
        "embed_parameters": True,
        "loras": [{"path": path + "?signature=abc", "scale": 0.75}, {"path": "ORG/NAME"}],
    }  # fmt: skip
    file = base64.b64decode(run(worker, job)["output"]["image"])
    values = values_of(by_web_ui(file))
    assert values["Seed"] == str(2**64 - 1) and values["Denoising strength"] == "0.5"
    assert values["Loras"] == "https://example.com/my/lora.safetensors: 0.75, ORG/NAME: 1"
    assert values["Model"] == "pil-fallback"  # no model drew it
    data = json.loads(Image.open(io.BytesIO(file)).info["parameters_json"])
    assert data["loras"] == [
        {"path": "https://example.com/my/lora.safetensors", "scale": 0.75}, {"path": "ORG/NAME", "scale": 1.0},
    ]  # fmt: skip
    assert data["seed"] == 2**64 - 1 and data["backend"] == "pil-fallback"
    assert not any(secret in file for secret in (b"password", b"signature"))


@pytest.mark.parametrize("mark", ["none", "xmp", "c2pa"])
@pytest.mark.parametrize("output_format", FORMATS)
def test_by_default_no_file_holds_a_word_of_the_job(cold_worker, scene, mark, output_format):
    variables = {"QWEN_MARK": mark}
    if mark == "c2pa":
        pytest.importorskip("c2pa", reason="c2pa-python is not installed")
        chain, key = signing_pair()
        variables |= {"QWEN_C2PA_CERTIFICATE": chain, "QWEN_C2PA_KEY": key_pem(key)}
    worker = cold_worker(QWEN_FALLBACK="force", **variables)
    job = {"prompt": "Zanzibar", "negative_prompt": "Quagmire", "seed": 7, "output_format": output_format}
    for more in ({"width": 256, "height": 256}, {"image": as_text(scene)}):
        words = "Zanzibar", "Quagmire", "CFG scale"
        private, asked = (
            base64.b64decode(run(worker, {**job, **more, **embed})["output"]["image"])
            for embed in ({}, {"embed_parameters": True})
        )
        assert not any(word.encode(code) in private for word in words for code in CODES)
        assert all(any(word.encode(code) in asked for code in CODES) for word in words)


@pytest.mark.parametrize("output_format", FORMATS)
def test_nothing_of_an_input_s_own_file_comes_back_but_its_colours(ask, scene, output_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "where the caller lives"
    chunks = PngInfo()
    chunks.add_text("parameters", "what the caller drew before")
    scene = scene.resize((256, 256))
    source = as_text(scene, icc_profile=profiles.DISPLAY_P3, exif=exif, pnginfo=chunks)
    mask = Image.new("L", scene.size, 0)
    mask.paste(255, (0, 0, 128, 256))
    job = {"prompt": "make it green", "num_inference_steps": 1, "output_format": output_format}
    job |= {"width": 256, "height": 256, "draw_size": "asked"}
    for embed in (False, True):
        reply = ask(**job, image=source, mask_image=as_text(mask), embed_parameters=embed)["output"]
        file = base64.b64decode(reply["image"])
        assert b"the caller" not in file
        found = by_exiftool(file, "-Orientation", "-ProfileDescription", "-ImageDescription", "-DigitalSourceType")
        assert "Orientation" not in found and "ImageDescription" not in found
        assert Image.open(io.BytesIO(file)).info[PROFILE] == profiles.DISPLAY_P3
        assert found["DigitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")


def test_texts_that_a_jpeg_has_no_room_for_are_refused_before_anything_is_drawn():
    long = {"prompt": "魚" * 3000, "negative_prompt": "e " * 5000, "embed_parameters": True}
    with pytest.raises(InvalidInput, match=r"embed_parameters writes \d+ bytes of text .* send png or webp"):
        parse({**long, "output_format": "jpeg"}, "a")
    for output_format in ("png", "webp", "auto"):
        parse({**long, "output_format": output_format}, "a")
    parse({**long, "output_format": "jpeg", "embed_parameters": False}, "a")


def test_the_longest_texts_that_are_taken_fit_into_each_format():
    loras = [{"path": f"some/{'n' * 80}/{k}.safetensors"} for k in range(4)]
    low, high = 1, 20_000
    while low < high:
        middle = (low + high + 1) // 2
        try:
            parse({"prompt": "魚" * middle, "output_format": "jpeg", "embed_parameters": True, "loras": loras}, "a")
            low = middle
        except InvalidInput:
            high = middle - 1
    assert low > 3000
    facts = {"model": "m" * 200, "revision": "r" * 100, "preset": "balanced", "loras": loras, "step_cache": True}
    request = parse({"prompt": "魚" * low, "loras": loras, "seed": 2**64 - 1, "embed_parameters": True}, "a")
    picture = Image.new("RGB", (256, 256))
    loras_used = [{**lora, "scale": 0.123, "strength_range": [0.123456, 1.123456]} for lora in loras]
    embed_parameters([picture], request, FACTS | facts | {"prompt": request.prompt, "loras": loras_used})
    for output_format in FORMATS:
        assert by_web_ui(encode_picture(picture, output_format)).startswith("魚" * low)


def test_a_nul_and_unpaired_lines_do_not_cut_the_text():
    file = encode_picture(embedded(Image.new("RGB", (256, 256)), prompt="before\0after\n\n"), "png")
    assert by_web_ui(file).startswith("before\ufffdafter\n\n\nSteps: 2")
    assert json.loads(Image.open(io.BytesIO(file)).info["parameters_json"])["prompt"] == "before\0after\n\n"


@pytest.mark.parametrize("value", ["yes", 1, "true"])
def test_embed_parameters_is_true_or_false(value):
    with pytest.raises(InvalidInput, match="embed_parameters must be true or false, not"):
        parse({"prompt": "a", "embed_parameters": value}, "a")


def test_the_text_has_the_steps_and_the_prompt_to_send_again():
    edit = {"task": "edit", "image": "aGk=", "strength": 0.5, "num_inference_steps": 4}
    found = by_web_ui(encode_picture(embedded(Image.new("L", (64, 64)), **edit), "png"))
    assert values_of(found)["Steps"] == "4" and values_of(found)["Denoising strength"] == "0.5"
    request = parse({"prompt": "a fox", "seed": 7, "embed_parameters": True, "prompt_extend": True}, "job")
    picture = Image.new("L", (64, 64))
    embed_parameters([picture], request, FACTS | {"prompt": "a fox", "instruction": "a red fox in deep snow"})
    assert by_web_ui(encode_picture(picture, "png")).splitlines()[0] == "a red fox in deep snow"


def test_a_rewritten_prompt_that_a_jpeg_has_no_room_for_gives_way_to_the_caller_s_own():
    request = parse(
        {"prompt": "a fox", "embed_parameters": True, "prompt_extend": True, "output_format": "jpeg"}, "job"
    )
    picture = Image.new("L", (64, 64))
    embed_parameters([picture], request, FACTS | {"prompt": "a fox", "instruction": "雪" * 15_000})
    file = encode_picture(picture, "jpeg")
    assert by_web_ui(file).splitlines()[0] == "a fox" and "雪" not in by_exiftool(file, "-XPComment")["XPComment"]
