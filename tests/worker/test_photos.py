"""Whole edits of photos that are larger than what the model draws: only the region of the mask is another one."""

import dataclasses
import functools
import io
import json
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwen_tiny.world import judge
from qwen_worker.pictures.marks import edits_of

from ..conftest import ROOT, as_text, file_of, heic_of, only_proved, picture_of, run, text_of, warnings_of
from ..support import profiles
from ..support.heif_boxes import grid, heif, ispe, parts_of
from ..support.wallpaper import wallpaper

EDIT = {"prompt": "make the background green", "seed": 1, "guidance_scale": 1}
MOST_SECONDS_OF_ONE_MEGAPIXEL = 1.3  # times
RESULTS = ROOT / "benchmarks/results/photo_edit.json"


def scene(size):
    picture = Image.new("RGB", (size, size), "blue")
    ImageDraw.Draw(picture).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="red")
    return picture


def differing(found, own, mask):
    """How many pixels outside and inside the mask are others than before."""
    changed = (np.asarray(found.convert("RGB")) != np.asarray(own.convert("RGB"))).any(axis=2)
    inside = np.asarray(mask) > 0
    return int(changed[~inside].sum()), float(changed[inside].mean())


@pytest.fixture(scope="module")
def worker(warm_workers):
    return warm_workers(QWEN_RESULT_LIMIT_MB=100)


def test_a_large_photo_comes_back_at_its_own_size_with_its_edits_counted_and_nothing_else_changed(worker):
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.NEAREST)
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((900, 300, 1300, 700), fill=255)
    fields = EDIT | {"num_inference_steps": 1, "mask_image": as_text(mask)}
    image, own = as_text(photo, icc_profile=profiles.DISPLAY_P3), photo
    before = None
    for round_number in (1, 2):
        reply = run(worker, fields | {"image": image})["output"]
        metadata, image = reply["metadata"], reply["image"]
        outside, inside = differing(picture_of(image), own, mask)
        assert (outside, metadata["dimensions"], metadata["width"]) == (0, "1600x1200", 1600) and inside > 0.9
        assert picture_of(image).info["icc_profile"] == profiles.DISPLAY_P3
        left, top, right, bottom = metadata["crop"]
        assert left < 900 and top < 300 and right > 1300 and bottom > 700 and right - left < 1600
        assert "stitch" in metadata["timings"] and not warnings_of(metadata)
        lineage = metadata["lineage"]
        assert lineage.get("round") == (round_number if round_number > 1 else None)
        assert before is None or lineage["inputs"] == before
        before = lineage["outputs"]
    assert edits_of(file_bytes(image)) == 2


def file_bytes(text):
    import base64

    return base64.b64decode(text)


@only_proved
def test_a_real_photo_is_edited_in_the_time_of_one_megapixel(worker):
    file = wallpaper()
    if isinstance(file, str):
        pytest.skip(file)
    photo = Image.open(io.BytesIO(file)).convert("RGB")
    assert photo.width * photo.height >= 12_000_000
    photo.paste(scene(1024), (1500, 1000))
    mask = Image.new("L", photo.size)
    mask.paste(255, (1508, 1008, 2516, 2016))
    large = EDIT | {"num_inference_steps": 12, "guidance_scale": 4}
    small = large | {"image": as_text(scene(1024)), "mask_image": as_text(mask.crop((1500, 1000, 2524, 2024)))}
    large |= {"image": as_text(photo), "mask_image": as_text(mask), "mask_padding": 0}
    run(worker, small | {"num_inference_steps": 1})  # what is made once
    (_, one_megapixel), (reply, seconds) = (drawn_seconds(worker, fields) for fields in (small, large))
    metadata, found = reply["metadata"], picture_of(reply["image"])
    outside, inside = differing(found, photo, mask)
    reading = judge.read(found.crop((1508, 1008, 2516, 2016)))
    row = {
        "photo": f"{photo.width}x{photo.height}", "drawn part": metadata["crop"], "differing pixels outside": outside,
        "reading": dataclasses.asdict(reading), "seconds of the drawing": round(seconds, 2),
        "seconds of the stitch": metadata["timings"]["stitch"], "seconds of one megapixel": round(one_megapixel, 2),
    }  # fmt: skip
    RESULTS.write_text(json.dumps({"benchmark": "photo_edit", **row}, indent=2) + "\n")
    assert found.size == photo.size and outside == 0 and inside > 0.5
    assert (reading.background, reading.colour, reading.shape) == ("green", "red", "circle")
    assert seconds + metadata["timings"]["stitch"] <= MOST_SECONDS_OF_ONE_MEGAPIXEL * one_megapixel, row


def drawn_seconds(worker, fields):
    """The reply, and the seconds of a processor that the thread which draws has taken: the machine may be busy."""
    before = worker.inference_thread.submit(time.thread_time).result()
    reply = run(worker, fields)["output"]
    return reply, worker.inference_thread.submit(time.thread_time).result() - before


@functools.cache
def blank(size, colour="blue", **options):
    return file_of(Image.new("RGB", size, colour), **options)


@functools.cache
def dots(size, *points):
    mask = Image.new("L", size)
    for point in points:
        mask.putpixel(point, 255)
    return file_of(mask)


def avif_sequence():
    frames = [Image.new("RGB", (1400, 1000), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:], speed=10)
    return buffer.getvalue()


def heic_bomb():
    """A few kilobytes that ask for one coded picture ten thousand times."""
    config, coded = parts_of(heic_of(Image.new("RGB", (128, 96), "red")))
    items = [(b"grid", grid(100, 100, 128, 96), [1]), (b"hvc1", coded, [2, 3])]
    return heif(items, [ispe(128, 96), config, ispe(128, 96)], [(b"dimg", 1, [2] * 10_000)])


BIG, CORNERS = (2600, 1800), ((0, 0), (2599, 0), (0, 1799), (2599, 1799))
STRIP = (9000, 200)
UNUSUAL = {  # photo, mask, more fields, and a piece of the warning, or nothing
    "a mask of one pixel": (blank(BIG), dots(BIG, (1500, 1000)), {}, ""),
    "a mask of everything": (blank(BIG), file_of(Image.new("L", BIG, 255)), {}, "repaints 100 % of the image"),
    "a mask of everything at its own size": (
        blank(BIG), file_of(Image.new("L", BIG, 255)), {"mask_crop": True}, "enlarged 2."
    ),
    "a mask in every corner": (blank(BIG), dots(BIG, *CORNERS), {}, "has less detail than the rest"),
    "a profile that lies": (blank(BIG, icc_profile=profiles.cmyk()), dots(BIG, (9, 9)), {}, "cannot be used"),
    "a profile of 4 MB": (blank(BIG, icc_profile=profiles.table()), dots(BIG, (9, 9)), {}, "the result is sRGB"),
    "an AVIF of several pictures": (avif_sequence(), dots((1400, 1000), (9, 9)), {}, "is a moving picture"),
    "a strip with a mask at its end": (blank(STRIP), dots(STRIP, (8999, 199), (8950, 100)), {}, ""),
    "a lossy file": (blank(BIG), dots(BIG, (9, 9)), {"output_format": "jpeg"}, "the picture is not exact; send png"),
}  # fmt: skip
REFUSED = {  # photo, mask, more fields, and how the refusal begins
    "a mask of nothing": (blank(BIG), file_of(Image.new("L", BIG)), {}, "invalid_input: mask_image must be white"),
    "a mask of another aspect": (blank(BIG), dots((200, 200), (9, 9)), {}, "invalid_input: mask_image must have the"),
    "a bomb in HEIC": (heic_bomb(), dots((128, 96), (9, 9)), {}, "image_unreadable: image has 122,880,000 coded"),
    "a canvas of 30,000 pixels more": (blank(BIG), None, {"expand": 30_000}, "invalid_input: expand must be a whole"),
    "a strip with a mask all along": (
        blank(STRIP), dots(STRIP, (0, 0), (8999, 199)), {}, "invalid_input: mask_image must repaint a region"
    ),
    "a strip without a crop": (
        blank(STRIP), dots(STRIP, (9, 9)), {"mask_crop": False}, "invalid_input: image must have an aspect of at most"
    ),
    "padding without a mask": (blank(BIG), None, {"mask_padding": 9}, "invalid_input: mask_padding says"),
    "a crop at another size": (
        blank(BIG), dots(BIG, (9, 9)), {"mask_crop": True, "size": "1024x1024"}, "invalid_input: mask_crop true gives"
    ),
    "lossless JPEG": (
        blank(BIG), dots(BIG, (9, 9)), {"output_format": "jpeg", "lossless": True}, "invalid_input: lossless is not to"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def stand_ins(warm_workers):
    return warm_workers(QWEN_FALLBACK="force")


def fields_of(photo, mask, more):
    return {"prompt": "a red circle", "image": text_of(photo)} | more | ({"mask_image": text_of(mask)} if mask else {})


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_hostile_is_refused_with_a_sentence_before_a_model_is_loaded(cold_worker, case):
    *job, sentence = REFUSED[case]
    worker = cold_worker(QWEN_FALLBACK="forbid")
    assert run(worker, fields_of(*job))["error"].startswith(sentence) and not worker.pipelines.loaded


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_unusual_gets_a_picture_of_the_right_size_and_is_warned_of(stand_ins, case):
    photo, mask, more, sentence = UNUSUAL[case]
    output = run(stand_ins, fields_of(photo, mask, more))["output"]
    metadata = output["metadata"]
    assert not sentence or any(sentence in warning for warning in warnings_of(metadata))
    found, size = picture_of(output["image"]), Image.open(io.BytesIO(mask)).size
    assert found.size == (metadata["width"], metadata["height"])
    assert found.size == size or "as a whole" in str(warnings_of(metadata))


def test_what_has_no_room_exact_is_refused_before_anything_is_drawn_unless_it_may_be_lossy(cold_worker):
    noise = np.random.default_rng(1).integers(0, 256, (1100, 1300, 3), dtype=np.uint8)
    photo, size = Image.fromarray(noise), (1300, 1100)
    mask = text_of(dots(size, (100, 100)))
    worker = cold_worker(QWEN_RESULT_LIMIT_MB=2)
    fields = EDIT | {"image": as_text(photo), "mask_image": mask}
    error = run(worker, fields)["error"]
    assert error.startswith("result_too_large: exact outside the mask, the picture of 1300x1100 would have ")
    assert "give a bucket" in error and not worker.pipelines.loaded
    forced = cold_worker(QWEN_RESULT_LIMIT_MB=2, QWEN_FALLBACK="force")
    body = run(forced, fields | {"output_quality": 30})
    metadata = body["output"]["metadata"]
    assert any("is not exact: lossless" in warning for warning in metadata["warnings"])
    assert (metadata["output_format"], metadata["dimensions"]) == ("webp", "1300x1100")


@pytest.mark.parametrize("output_format", ["avif", "webp"])
def test_avif_and_lossless_webp_have_their_mark_and_their_profile(stand_ins, output_format):
    fields = {"prompt": "a", "image": text_of(blank((300, 300))), "output_format": output_format}
    body = run(stand_ins, fields | ({"lossless": True} if output_format == "webp" else {}))["output"]
    file, picture = file_bytes(body["image"]), picture_of(body["image"])
    assert picture.format == output_format.upper() and edits_of(file) == 1
    assert picture.info["icc_profile"] and b"DigitalSourceType" in picture.info["xmp"]
    assert body["metadata"]["output_format"] == output_format
