"""Pictures as people send them come out upright, RGB and right; what is no picture is refused by what is wrong."""

import io
import re
import struct
import zlib
from urllib.parse import quote

import pytest
from PIL import Image, ImageChops

from qwen_worker.errors import JobError
from qwen_worker.pictures.data_uris import decode_base64
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.images import UPRIGHT_TURNS, as_rgb
from qwen_worker.pictures.inputs import read_image
from qwen_worker.pictures.masks import feather, restore_outside

from ..conftest import as_text, file_of, text_of
from ..support.patience import little_work
from ..support.pictures import decode_picture


def test_the_numbers_of_a_picture_are_had_without_its_info_and_the_picture_keeps_it():
    for mode in ("RGB", "L"):
        picture = Image.new(mode, (4, 4))
        picture.info = {"icc_profile": b"x"}
        plain = as_rgb(picture)
        assert (plain.mode, plain.info, picture.info) == ("RGB", {}, {"icc_profile": b"x"})


@pytest.fixture
def photo():
    """Four quarters of different colours, 64 x 32, so that orientation and channel order show."""
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("lime", (32, 0, 64, 16))
    picture.paste("blue", (0, 16, 32, 32))
    picture.paste("white", (32, 16, 64, 32))
    return picture


def near(a, b, tolerance=8):
    return a.size == b.size and max(ImageChops.difference(a, b).tobytes()) <= tolerance


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(photo, format):
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    assert near(decode_picture(file_of(photo, format, **options), "image"), photo)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.linear_gradient("L").resize((64, 64))
    if mode in ("I", "F"):
        picture, format = grey.convert(mode), "TIFF"
    elif mode == "I;16":
        wide = struct.pack("<4096H", *(value * 257 for value in grey.tobytes()))
        picture, format = Image.frombytes("I;16", (64, 64), wide), "PNG"
    else:
        picture, format = grey.convert("RGB").convert(mode), "TIFF" if mode == "CMYK" else "PNG"
    found = decode_picture(file_of(picture, format), "image")
    assert found.mode == "RGB"
    if mode not in ("1", "P"):  # dithered, or matched to a palette of few greys
        assert near(found.convert("L"), grey, tolerance=9)


def float_picture(values):
    """A 64 x 64 TIFF of floats that repeats these values."""
    data = struct.pack("<4096f", *(values[k % len(values)] for k in range(4096)))
    return file_of(Image.frombytes("F", (64, 64), data), "TIFF")


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ((0.0, 0.5, 1.0), (0, 127, 255)),
        ((0.0, 0.5, 1.0, 1.02), (0, 127, 255, 255)),  # sharpened
        ((-0.03, 0.5, 1.0), (0, 127, 255)),  # and below 0
        ((0.5, NAN, INFINITE, -INFINITE), (127, 0, 255, 0)),
        ((NAN,), (0,)),
        ((0.0,), (0,)),
        ((-5.0, -1.0), (0, 0)),
    ],
)
def test_floats_are_scaled_by_what_their_white_is_and_what_is_no_number_is_bounded(values, greys):
    found = decode_picture(float_picture(values), "image").convert("L").tobytes()
    assert tuple(found[: len(greys)]) == greys


@pytest.mark.parametrize(
    ("values", "greys", "white"),
    [
        ((0.25,) * 200 + (40.0,), (63,), "40, of which 1 was"),  # a lamp
        ((0.25,) * 200 + (60_000.0,), (63,), "60000, of which 1 was"),  # the sun
        ((0.0, 51.0, 255.0), (0, 51, 255), "255, of which 255 was"),
        ((0.0, 12.0, 240.0, 120.0), (0, 12, 240, 120), "240, of which 255 was"),
        ((51.0, NAN, INFINITE, 255.0), (51, 0, 255, 255), "255, of which 255 was"),
        ((0.0, 1.0, 2.0, 3.0), (0, 85, 170, 255), "3, of which 3 was"),  # light of more than 1 in much of the picture
        ((0.0, 65535.0, 32768.0), (0, 255, 127), "65535, of which 65535 was"),
        ((0.0, 1024.0, 4095.0), (0, 63, 255), "4095, of which 4095 was"),  # a camera of 12 bits
        ((0.0, 20_000.0, 40_000.0), (0, 77, 155), "40000, of which 65535 was"),
        ((0.0, 200000.0, 100000.0), (0, 255, 127), "200000, of which 200000 was"),
        ((0.0,) * 200 + (200.0,), (0,), "200, of which 255 was"),  # stars
        ((5.0,) * 150 + (200.0,), (127,), "200, of which 10 was"),  # a dark 8-bit picture is shown, not black
    ],
)
def test_larger_floats_are_read_by_their_range_with_a_warning(values, greys, white):
    warnings = []
    found = decode_picture(float_picture(values), "image", warnings.append).convert("L").tobytes()
    assert tuple(found[: len(greys)]) == greys
    assert warnings == [f"image is a picture of floats up to {white} taken for white"]


@pytest.mark.parametrize("white", [1.0, 3.0, 100.0, 255.0, 1023.0, 4095.0, 65535.0, 1e6])
def test_a_gradient_of_floats_is_neither_black_nor_white_whatever_its_range_is(white):
    found = decode_picture(float_picture([white * k / 255 for k in range(256)]), "image").convert("L").tobytes()[:256]
    assert sum(found) / 256 == pytest.approx(127, abs=78) and len(set(found)) > 90


def test_exif_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to see it upright
    sideways = photo.transpose(Image.Transpose.ROTATE_90)
    assert near(decode_picture(file_of(sideways, "PNG", exif=exif), "image"), photo)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_a_picture_is_turned_upright_once_in_every_format(photo, format, orientation):
    """A TIFF says so by a tag of its own, which Pillow applies itself; AVIF by boxes, which Pillow makes EXIF of."""
    backwards = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    sideways = photo.transpose(backwards.get(orientation) or UPRIGHT_TURNS[orientation])  # the others undo themselves
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format in ("PNG", "TIFF") else {"lossless": True} if format == "WEBP" else {"quality": 100}
    options |= {"subsampling": "4:4:4"} if format in ("JPEG", "AVIF") else {}
    data = file_of(sideways, format, exif=exif, **options)
    if format == "TIFF":
        assert Image.open(io.BytesIO(data)).tag_v2[0x0112] == orientation
    assert near(decode_picture(data, "image"), photo, 12)


def test_alpha_is_flattened_on_white(photo):
    photo.putalpha(0)
    assert decode_picture(file_of(photo), "image").getextrema() == ((255, 255),) * 3
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    assert decode_picture(file_of(palette, transparency=0), "image").getpixel((0, 0)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken(photo):
    other = Image.new("RGB", photo.size, "black")
    assert near(decode_picture(file_of(photo, "GIF", save_all=True, append_images=[other]), "image"), photo)


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text,
        lambda text: "\n".join(text[k : k + 76] for k in range(0, len(text), 76)),
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: "data:image/png;base64," + text,
        lambda text: "DATA:image/png;charset=utf-8;BASE64," + text,
        lambda text: f"  {text}\r\n",
        lambda text: f"data:image/png;base64,{quote(text, safe='')}",
        lambda text: quote(f"data:image/png;base64,{text}", safe=""),
        lambda text: re.sub("%..", lambda escape: escape[0].lower(), quote(text, safe="")),
        lambda text: f"base64,{text}",
        lambda text: f"image/png;base64,{text}",
        lambda text: f";base64, {text}",
        lambda text: f"data: image/png; base64 ,{text}",
    ],
)
def test_base64_is_read_in_every_dress(photo, dress):
    data = file_of(photo.resize((63, 31)))
    assert decode_base64(dress(text_of(data)), "image") == data


@pytest.mark.parametrize(
    "text",
    ["not base64!", "data:image/png,abc", "data:image/png;base64", "A", "ä" * 8, "a,b", "base64", "%" * 4, "%2B%2"],
)
def test_what_is_no_base64_is_unreadable(text):
    with pytest.raises(JobError, match="^image_unreadable: image is "):
        decode_picture(decode_base64(text, "image"), "image")


@pytest.mark.parametrize(
    "dress", ['"{}"', "'{}'", "  {}\n", '\t" {} "', '"data:image/png;base64,{}"', " data:image/png;base64,{}"]
)
def test_an_image_in_quotes_or_with_space_around_it_is_read(photo, dress):
    data = file_of(photo)
    assert read_image(dress.format(text_of(data)), "image", 1, None) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[object Object]", "is the text \\[object Object\\], which JavaScript makes of an object"),
        ("[object File]", "is the text \\[object File\\], which JavaScript makes of an object"),
        ("blob:https://example.com/0b1c", "is a blob: URL, which only the browser that made it can read"),
        ("/home/me/photo.PNG", "is the path of a file, which the worker cannot reach"),
        ("C:\\Users\\me\\photo.jpg", "is the path of a file"),
        ("\\\\server\\share\\scan", "is the path of a file"),
        ("C:\\x", "is the path of a file"),
        ("/etc/passwd", "is the path of a file"),
        ("/workspace/inputs/photo", "is the path of a file"),
        ("~/x", "is the path of a file"),
        ("./photo", "is the path of a file"),
        ("../photos/photo", "is the path of a file"),
        ("~/my pictures/photo.heic", "is the path of a file"),
        ("photo.webp", "is the path of a file"),
        ('"photo.webp"', "is the path of a file"),
        ("not base64!", "is neither base64, a base64 data URI nor an http\\(s\\) URL"),
    ],
)
def test_what_a_program_or_a_person_puts_in_an_image_s_place_gets_its_own_sentence(text, words):
    with pytest.raises(JobError, match=f"^image_unreadable: image {words}"):
        read_image(text, "image", 1, None)


def test_base64_that_begins_like_a_path_is_base64(photo):
    data = file_of(photo, "JPEG")
    assert text_of(data).startswith("/9j/") and read_image(text_of(data), "image", 1, None) == data


def test_escapes_without_end_are_refused_in_a_moment():
    with little_work(), pytest.raises(JobError, match="image is neither base64"):
        read_image("%2" * 14_000_000, "image", 1, None)


def test_too_many_bytes_are_refused():
    with pytest.raises(JobError, match="invalid_input: image must be at most 20 MB, not 20.0 MB"):
        decode_base64(text_of(b"\0" * 20_000_001), "image")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "image is empty"),
        (b"just some text, no picture", "image is not a PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF or HEIC picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image is not a PNG"),
        (b"%PDF-1.7", "image is not a PNG"),
        (b"\x89PNG\r\n\x1a\nand no chunk", "image is a damaged PNG file"),
        (b"II*\0 nothing", "image is a damaged TIFF file"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image is a damaged WEBP file"),
        (b"GIF89a", "image is a damaged GIF file"),
    ],
)
def test_what_is_no_picture_is_unreadable(data, words):
    with pytest.raises(JobError, match=f"^image_unreadable: {words}"):
        decode_picture(data, "image")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_half_a_picture_is_unreadable(format):
    data = file_of(Image.effect_noise((200, 200), 50).convert("RGB"), format)
    with pytest.raises(JobError, match="^image_unreadable: image is "):
        decode_picture(data[: len(data) // 2], "image")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(b"cHRM", 16), (b"cHRM", 33), (b"gAMA", 0), (b"sRGB", 0), (b"pHYs", 3), (b"tRNS", 2), (b"iCCP", 0), (b"iCCP", 1)],
)
def test_a_png_with_a_damaged_chunk_beside_its_pixels_is_read_without_it(photo, kind, size):
    """As browsers do."""
    data, warnings = file_of(photo), []
    damaged = data[:33] + chunk(b"tEXt", b"a\0b") + chunk(kind, bytes(size)) * 2 + data[33:]
    found = decode_picture(damaged, "image", warnings.append)
    assert near(found, photo, 0)
    assert warnings == [f"image is a PNG file with damaged chunks, which are left out of account: {kind.decode()}"]


def test_whole_chunks_beside_the_pixels_are_not_touched(photo):
    palette = photo.convert("P")
    for picture, options in ((photo, {"transparency": (255, 0, 0), "dpi": (72, 72)}), (palette, {"transparency": 3})):
        warnings = []
        decode_picture(file_of(picture, **options), "image", warnings.append)
        assert not warnings


def png_header(width, height):
    """A PNG of this size whose pixels would be asked for: a small file, a huge picture."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((40_000, 40_000), "image must have at most 50,000,000 pixels"),
        ((10_000, 10_000), "image must have at most 50,000,000 pixels, not 10000x10000"),
        ((1200, 1), "image must have an aspect of at most 8:1, not 1200x1"),
        ((100, 801), "image must have an aspect of at most 8:1, not 100x801"),
    ],
)
def test_a_picture_of_bad_shape_is_refused_before_it_is_decoded(size, words):
    with pytest.raises(JobError, match=f"^invalid_input: {words}"):
        decode_picture(png_header(*size), "image")


def tiff(*entries):
    """A little-endian TIFF directory of (tag, type, value): 3 a short, 4 a long, 11 a float."""
    layout = {3: "<HHIHxx", 4: "<HHII", 11: "<HHIf"}
    body = b"".join(struct.pack(layout[kind], tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def test_exif_that_cannot_be_written_again_still_turns_the_picture(photo):
    exif = b"Exif\0\0" + tiff((0x0112, 3, 6), (0xC619, 11, float("nan")))
    sideways = photo.transpose(Image.Transpose.ROTATE_90)
    assert near(decode_picture(file_of(sideways, "JPEG", exif=exif, quality=100, subsampling=0), "image"), photo)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xd8" + b"\xff\xda\x00\x02" * 101, "has at least 101 parts"),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_001, "has at least 20,001 parts"),
        (b"\xff\xd8" + b"\xff\xdd\x00\x04\0\0" * 20_001, "has at least 20,001 parts"),  # restart intervals
        (b"\xff\xd8" + b"\xff" * 50_000, "has at least 20,001 parts"),  # bytes that fill the room before a marker
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IDAT\0\0\0\0" * 20_001, "has at least 20,001 parts"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 30_000, "has at least 20,001 parts"),
    ],
)
def test_a_small_file_of_countless_parts_is_refused_before_it_is_decoded(data, words):
    with pytest.raises(JobError, match=f"image_unreadable: image {words}, far more than pictures have"):
        decode_picture(data, "image")


def test_a_tiff_with_a_tile_larger_than_any_picture_is_refused():
    size = [(256, 4, 256), (257, 4, 256), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tile = [(322, 4, 46_000), (323, 4, 46_000), (324, 4, 8), (325, 4, 8)]
    with pytest.raises(JobError, match="image_unreadable: image is a TIFF whose tiles are larger than any picture"):
        decode_picture(tiff(*size, *tile), "image")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_a_tiff_of_countless_strips_is_refused_before_it_is_opened(order, is_big, monkeypatch):
    """Pillow would make a record of each strip when it opens the file: a million of them are made of four megabytes."""
    entries = [(256, 3, 1, 256), (257, 3, 1, 256), (273, 4, 1_000_000, 500)]
    if is_big:
        head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) + struct.pack(f"{order}Q", len(entries))
        body = b"".join(struct.pack(f"{order}HHQQ", *entry) for entry in entries)
    else:
        head = struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(entries))
        body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    data = {"<": b"II", ">": b"MM"}[order] + head + body + bytes(4_000_000)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(
        JobError, match="image_unreadable: image has at least 1,000,000 parts, far more than pictures have"
    ):
        decode_picture(data, "image")


def test_a_tiff_of_many_strips_is_read(photo):
    """One row in each, as some scanners write it."""
    tall = photo.resize((64, 500))
    assert near(decode_picture(file_of(tall, "TIFF", tiffinfo={278: 1}, strip_size=1), "image"), tall, 0)


def test_any_damage_is_unreadable_or_a_picture():
    """Every single byte of small files overwritten: never another exception."""
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = file_of(Image.effect_noise((24, 24), 50).convert("RGB"), format)
        for position in range(min(len(data), 700)):
            damaged = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
            try:
                assert decode_picture(damaged, "image").mode == "RGB"
            except JobError:
                pass


def test_outside_the_mask_every_pixel_is_the_source_s_and_deep_inside_the_picture_s(photo):
    source = Image.effect_noise((128, 128), 80).convert("RGB")
    picture = Image.new("RGB", (128, 128), "lime")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 96, 96))
    found = restore_outside(picture, source, mask)
    changed = ImageChops.difference(found, source).convert("L").point(lambda value: 255 if value else 0)
    assert ImageChops.multiply(changed, ImageChops.invert(mask)).getbbox() is None
    assert near(found.crop((48, 48, 80, 80)), picture.crop((48, 48, 80, 80)), 0)


@pytest.mark.parametrize(
    "box", [(60, 0, 61, 128), (60, 0, 68, 128), (50, 50, 62, 62), (0, 0, 5, 5), (127, 127, 128, 128), (30, 30, 90, 90)]
)
def test_the_middle_of_a_mask_however_thin_is_repainted_whole(box):
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, box)
    found = feather(mask)
    assert found.getbbox() == box and found.getextrema()[1] == 255
    assert ImageChops.multiply(found, ImageChops.invert(mask)).getbbox() is None


def test_the_edge_fades_inside_the_mask():
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (20, 0, 64, 64))
    found = restore_outside(Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black"), mask)
    ramp = [found.getpixel((column, 32))[0] for column in range(16, 36)]
    assert ramp[:4] == [0] * 4 and ramp[-5:] == [255] * 5 and ramp == sorted(ramp) and len(set(ramp)) > 6


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_picture_is_encoded_in_the_format_asked_for(photo, format):
    file = encode_picture(photo, format)
    found = Image.open(io.BytesIO(file))
    assert found.format == format.upper() and found.size == photo.size
    if format != "jpeg":
        assert near(found, photo, 0)
        assert encode_picture(photo, format) == file


def test_quality_changes_the_size():
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    for format in ("webp", "jpeg"):
        assert len(encode_picture(noise, format, 10)) < len(encode_picture(noise, format, 90))
    assert encode_picture(noise, "png", 10) == encode_picture(noise, "png", 90)


def test_text_of_the_helpers_is_what_a_client_sends(photo):
    assert near(decode_picture(decode_base64(as_text(photo), "image"), "image"), photo, 0)
    assert io.BytesIO(file_of(photo)).read(4) == b"\x89PNG"
