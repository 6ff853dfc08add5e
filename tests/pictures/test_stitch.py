"""A drawn part in its photo: no pixel outside the mask is another one, in any colour space, of 8 or of 16 bits."""

import io
import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures import exact
from qwen_worker.pictures.colour import PROFILE, to_srgb
from qwen_worker.pictures.crop import frame_of
from qwen_worker.pictures.images import load_picture
from qwen_worker.pictures.inputs import open_images
from qwen_worker.pictures.stitch import enlarge

from ..conftest import as_text, file_of, heic_of, text_of
from ..support import profiles

SIZE = 1300, 1000
REGION = 300, 200, 1001, 701


@pytest.fixture(scope="module")
def numbers():
    """16-bit RGB of all values, in blocks of 20 pixels so that their files are small."""
    blocks = np.random.default_rng(1).integers(0, 65536, (SIZE[1] // 20, SIZE[0] // 20, 3), dtype=np.uint16)
    return blocks.repeat(20, 0).repeat(20, 1)


def mask_of(size=SIZE, region=REGION):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((region[0], region[1], region[2] - 1, region[3] - 1), fill=255)
    return mask


def opened(image, mask=None, warn=None, **fields):
    """What a job with this file draws on."""
    mask = as_text(mask_of() if mask is None else mask)
    request = parse({"prompt": "a", "image": text_of(image), "mask_image": mask, **fields}, "job")
    return open_images(request, 1, warn or (lambda _: None))


def stitched(inputs, colour=(200, 30, 60), output_format="png"):
    """The file of the photo when all of its part is drawn in one colour."""
    part = Image.new("RGB", inputs.stitch.frame.drawn, colour)
    return exact.encode_whole(part, inputs.stitch, output_format, None, {})


def read(file):
    import imagecodecs

    return imagecodecs.png_decode(file)


SPACES = {
    "sRGB": ("RGB", None), "Display P3": ("RGB", profiles.DISPLAY_P3), "Adobe RGB": ("RGB", profiles.ADOBE_RGB),
    "ProPhoto": ("RGB", profiles.PROPHOTO), "grey": ("L", None), "grey with a profile": ("L", profiles.grey()),
    "with alpha": ("RGBA", None),
}  # fmt: skip


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("space", SPACES)
def test_outside_the_mask_every_pixel_and_the_profile_are_the_files_own(numbers, space, bits):
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    mode, profile = SPACES[space]
    count = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    own = np.concatenate([numbers, numbers[::-1, :, :1]], 2)[:, :, :count]
    if bits == 16:
        image = exact.encode_deep(own, {PROFILE: profile})
    else:
        own = (own >> 8).astype(np.uint8)
        image = file_of(Image.fromarray(own[:, :, 0] if count == 1 else own), icc_profile=profile)
    file = stitched(opened(image))
    found = read(file)
    found = found if found.ndim == 3 else found[:, :, None]
    assert found.dtype == own.dtype
    outside = np.asarray(mask_of()) == 0
    colours = slice(0, 3 if found.shape[2] > count else count)
    expected = np.broadcast_to(own[:, :, colours], found[:, :, colours].shape) if count == 1 else own
    assert np.array_equal(found[outside], expected[outside])
    picture = Image.open(io.BytesIO(file))
    assert picture.info.get(PROFILE) == profile
    # In the middle the drawing is in the photo's own space, and opaque.
    middle = to_srgb(picture.convert("L" if mode == "L" and profile else "RGB").crop((640, 440, 660, 460)))
    red, green, blue = np.asarray(middle).mean((0, 1))
    if mode == "L" and profile:
        assert red == green == blue
    else:
        assert (red, green, blue) == pytest.approx((200, 30, 60), abs=3)


def test_outside_the_mask_a_photo_of_inks_is_what_its_profile_makes_of_them(numbers):
    inks = Image.fromarray((numbers[:, :, [0, 1, 2, 0]] >> 8).astype(np.uint8), "CMYK")
    warnings = []
    found = read(stitched(opened(file_of(inks, "TIFF", icc_profile=profiles.cmyk()), warn=warnings.append)))
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        inks, ImageCms.ImageCmsProfile(io.BytesIO(profiles.cmyk())), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    outside = np.asarray(mask_of()) == 0
    assert np.abs(found.astype(int) - np.asarray(converted).astype(int))[outside].max() <= 1
    assert warnings == ["image is CMYK, and the result is sRGB"]


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_photo_that_lies_on_its_side_comes_back_upright(numbers, orientation, bits):
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    exif = Image.Exif()
    exif[0x0112] = orientation
    own = (numbers >> 8).astype(np.uint8)
    turned = np.rot90(own, {3: 2, 6: 1, 8: -1}[orientation])
    if bits == 16:
        wide = np.ascontiguousarray(np.rot90(numbers, {3: 2, 6: 1, 8: -1}[orientation]))
        start = exact.encode_deep(wide, {})
        head = len(b"\x89PNG\r\n\x1a\n") + 25
        body = exif.tobytes()[6:]
        from qwen_worker.pictures.deep import chunk

        image, own = start[:head] + chunk(b"eXIf", body) + start[head:], numbers
    else:
        image = file_of(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    found = read(stitched(opened(image)))
    assert found.shape == own.shape
    outside = np.asarray(mask_of()) == 0
    assert np.array_equal(found[outside], own[outside])


def test_a_tiff_of_16_bits_keeps_them(numbers):
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    found = read(stitched(opened(imagecodecs.tiff_encode(numbers, compression="lzw"))))
    outside = np.asarray(mask_of()) == 0
    assert np.array_equal(found[outside], numbers[outside])


def test_a_part_that_is_drawn_smaller_comes_back_in_tiles_as_in_one():
    frame = frame_of((3000, 2200), (100, 200, 2900, 2000), None)
    assert frame.scale > 2
    drawn = Image.effect_noise(frame.drawn, 80).convert("RGB")
    at_once = np.asarray(enlarge(drawn, frame, (600, 500, 1400, 1200))).astype(int)
    for left, top, right, bottom in ((600, 500, 1000, 800), (1000, 500, 1400, 800), (777, 801, 1201, 1200)):
        tile = np.asarray(enlarge(drawn, frame, (left, top, right, bottom))).astype(int)
        assert np.abs(tile - at_once[top - 500 : bottom - 500, left - 600 : right - 600]).max() <= 1


def test_the_model_sees_the_part_where_it_is_and_not_zoomed():
    photo = Image.new("RGB", (3000, 2000), "blue")
    ImageDraw.Draw(photo).rectangle((1000, 700, 1999, 1299), fill="red")
    mask = Image.new("L", photo.size)
    mask.paste(255, (900, 600, 2100, 1400))
    inputs = opened(file_of(photo), mask)
    frame, seen = inputs.stitch.frame, np.asarray(inputs.sources[0])
    assert inputs.sources[0].size == frame.drawn == inputs.mask.size
    rows, columns = np.where(seen[:, :, 0] > 127)
    for found, at, start in ((columns, (1000, 2000), frame.left), (rows, (700, 1300), frame.top)):
        assert found.min() == pytest.approx((at[0] - start) / frame.scale, abs=1)
        assert found.max() + 1 == pytest.approx((at[1] - start) / frame.scale, abs=1)


def test_the_models_mask_keeps_a_line_of_one_pixel():
    photo = Image.new("RGB", (3000, 2000), "blue")
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).line((50, 50, 2950, 1950), fill=255)
    inputs = opened(file_of(photo), mask)
    assert inputs.stitch.frame.scale > 2
    drawn = np.asarray(inputs.mask) > 0
    rows = np.where(drawn.any(1))[0]
    assert len(rows) > 0.9 * inputs.mask.height and (np.diff(rows) == 1).all()


def test_a_soft_mask_fades_as_its_greys_do_where_the_job_asks_for_it():
    photo = Image.new("RGB", SIZE, "black")
    ramp = np.zeros(SIZE[::-1], np.uint8)
    ramp[300:800, 400:1168] = np.repeat(np.arange(256), 3)[None, :]
    soft = read(stitched(opened(file_of(photo), Image.fromarray(ramp), mask_blend="soft"), "white"))[:, :, 0]
    hard = read(stitched(opened(file_of(photo), Image.fromarray(ramp)), "white"))[:, :, 0]
    assert np.abs(soft.astype(int) - ramp)[ramp < 248].max() <= 8
    assert set(np.unique(hard[350:750])) - {0, 255} and (hard[350:750, 820:1140] == 255).all()
    assert not hard[ramp < 128].any()


def test_phones_files_are_read_at_their_own_size():
    photo = Image.effect_noise(SIZE, 60).convert("RGB")
    image = heic_of(photo, quality=-1, chroma=444, matrix_coefficients=0)
    decoded = load_picture(image, "image", pytest.fail)
    found = read(stitched(opened(image)))
    assert np.array_equal(found[:150], np.asarray(decoded)[:150])


def test_a_photo_of_16_bits_without_the_library_is_read_with_8_and_says_so(numbers, monkeypatch):
    import sys

    image, warnings = exact.encode_deep(numbers, {}), []
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    inputs = opened(image, warn=warnings.append)
    assert inputs.stitch.photo.number_bytes == 1
    assert warnings == [
        "image has 16 bits and is read with 8: imagecodecs is not installed (requirements-pictures.txt)"
    ]


def test_a_stop_is_heard_while_it_is_measured_whether_a_photo_has_room():
    from qwen_worker.errors import Cancelled

    stopped = threading.Event()
    stopped.set()
    inputs = opened(file_of(Image.effect_noise(SIZE, 60).convert("RGB")))
    with pytest.raises(Cancelled):
        exact.least_bytes(inputs.stitch, ("png", None), 1e9, stopped)
