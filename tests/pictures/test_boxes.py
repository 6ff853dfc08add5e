"""HEIC and AVIF are read, and what they would cost is known by their own headers before a decoder sees them."""

import io
import struct

import pytest
from PIL import Image, ImageChops

from qwen_worker.errors import JobError
from qwen_worker.pictures.boxes import read_container, require_decodable
from qwen_worker.pictures.inputs import open_source

from ..conftest import file_of, heic_of
from ..support.heif_boxes import box, grid, heif, ispe, parts_of
from ..support.pictures import decode_picture
from ..support.profiles import DISPLAY_P3


@pytest.fixture(scope="module")
def photo():
    picture = Image.new("RGB", (128, 96), (220, 40, 40))
    picture.paste((40, 60, 200), (64, 0, 128, 48))
    return picture


ENCODERS = {
    "heic": lambda picture, **options: heic_of(picture, quality=95, chroma=444, **options),
    "avif": lambda picture, **options: file_of(picture, "AVIF", quality=95, subsampling="4:4:4", **options),
}
every_format = pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)


def near(a, b, tolerance=10):
    return a.size == b.size and max(ImageChops.difference(a, b).tobytes()) <= tolerance


@every_format
def test_it_is_read(photo, encode):
    assert near(decode_picture(encode(photo), "image"), photo)
    see_through = photo.copy()
    see_through.putalpha(0)
    assert decode_picture(encode(see_through), "image").getpixel((5, 5)) >= (250, 250, 250)


@every_format
def test_its_profile_and_its_numbers_say_its_colours(photo, encode):
    found, _, original, _ = open_source(encode(photo, icc_profile=DISPLAY_P3), "image", pytest.fail, True)
    assert found.getpixel((5, 90))[0] > 235 and near(original, photo)
    if encode is ENCODERS["heic"]:
        data = encode(photo, color_primaries=12, transfer_characteristics=13)
    else:
        data = encode(photo)
        at = data.index(b"nclx") + 4
        data = data[:at] + struct.pack(">H", 12) + data[at + 2 :]
    by_numbers, *_ = open_source(data, "image", pytest.fail, False)
    assert near(by_numbers, found, 3)


def test_a_heic_is_turned_upright_once(photo):
    config, coded = parts_of(ENCODERS["heic"](photo.transpose(Image.Transpose.ROTATE_90)))
    quarters = box(b"irot", bytes([3]))
    data = heif([(b"hvc1", coded, [1, 2, 3])], [config, ispe(96, 128), quarters])
    assert near(decode_picture(data, "image"), photo, 16)


def test_of_a_sequence_the_still_picture_is_taken(photo):
    data = file_of(photo, "AVIF", quality=95, save_all=True, append_images=[Image.new("RGB", photo.size)] * 3)
    found = decode_picture(data, "image")
    assert data[8:12] == b"avis" and near(found.crop((0, 0, 56, 96)), photo.crop((0, 0, 56, 96)))
    only_frames = data.replace(b"meta", b"free")
    with pytest.raises(
        JobError, match="image_unreadable: image is a damaged HEIC or AVIF file: it has no still picture"
    ):
        decode_picture(only_frames, "image")


def test_a_file_is_handed_to_the_one_decoder_that_its_still_picture_needs(photo, monkeypatch):
    """By the brand mif1, libavif would take the frames of a sequence, which are not counted, for the picture."""
    heic, avif = (parts_of(encode(photo)) for encode in ENCODERS.values())
    for kind, (config, coded), brand in ((b"hvc1", heic, b"heic"), (b"av01", avif, b"avif")):
        data = heif([(kind, coded, [1, 2])], [config, ispe(128, 96)], brand=b"mif1")
        assert require_decodable(data, "image", 100_000)[0][8:12] == brand
        assert near(decode_picture(data + box(b"moov", b"frames"), "image"), photo)
    both = heif([(b"hvc1", heic[1], [1, 2])], [heic[0], ispe(128, 96), avif[0]])
    refused(both, monkeypatch, "is a damaged HEIC or AVIF file: it holds pictures of both kinds")
    refused(PLAIN, monkeypatch, "is a damaged HEIC or AVIF file: it holds no picture of HEVC or AV1")


def refused(data, monkeypatch, words, max_pixels=100_000_000):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(JobError, match=f"image_unreadable: image {words}"):
        require_decodable(data, "image", max_pixels)


@every_format
def test_a_size_that_is_smaller_than_the_coded_one_counts_for_nothing(photo, encode, monkeypatch):
    config, coded = parts_of(encode(photo))
    kind, brand = (b"hvc1", b"heic") if config[4:8] == b"hvcC" else (b"av01", b"avif")
    data = heif([(kind, coded, [1, 2])], [config, ispe(16, 16)], brand=brand)
    assert read_container(data).pixels(1) == 128 * 96
    refused(data, monkeypatch, "has 12,288 coded pixels, more than pictures of at most 12,000 have", 12_000)


def test_a_size_within_the_coded_data_alone_counts(photo):
    """Without one in the configuration: decoders go by what comes last."""
    config, coded = parts_of(ENCODERS["heic"](photo))
    arrays, units = 31, []
    for _ in range(config[30]):
        (length,) = struct.unpack_from(">H", config, arrays + 3)
        units.append(struct.pack(">I", length) + config[arrays + 5 : arrays + 5 + length])
        arrays += 5 + length
    bare = box(b"hvcC", config[8:30] + b"\0")
    assert (
        read_container(heif([(b"hvc1", b"".join(units) + coded, [1, 2])], [bare, ispe(16, 16)])).pixels(1) == 128 * 96
    )
    config, coded = parts_of(ENCODERS["avif"](photo))
    bare = box(b"av1C", config[8:12])
    assert read_container(heif([(b"av01", coded, [1, 2])], [bare, ispe(16, 16)])).pixels(1) == 128 * 96


@every_format
def test_pictures_within_a_picture_count_each(photo, encode, monkeypatch):
    """A decoder goes through all of them to come to the one that is shown."""
    config, coded = parts_of(encode(photo))
    kind, brand = (b"hvc1", b"heic") if config[4:8] == b"hvcC" else (b"av01", b"avif")
    data = heif([(kind, coded * 5000, [1, 2])], [config, ispe(128, 96)], brand=brand)
    refused(data, monkeypatch, f"has {5000 * 128 * 96:,} coded pixels", 50_000_000)


def test_a_tile_counts_as_often_as_it_is_in_a_picture(photo, monkeypatch):
    config, coded = parts_of(ENCODERS["heic"](photo))
    items = [(b"grid", grid(100, 100, 128, 96), [1]), (b"hvc1", coded, [2, 3])]
    two = [(b"grid", grid(1, 2, 256, 96), [1]), items[1], items[1]]
    few = heif(two, [ispe(256, 96), config, ispe(128, 96)], [(b"dimg", 1, [2, 3])])
    assert decode_picture(few, "image").size == (256, 96)
    many = heif(items, [ispe(128, 96), config, ispe(128, 96)], [(b"dimg", 1, [2] * 10_000)])
    refused(many, monkeypatch, f"has {10_000 * 128 * 96:,} coded pixels")


PLAIN = heif([(b"iden", b"", [1])], [ispe(16, 16)])
META = slice(PLAIN.index(b"meta") - 4, PLAIN.index(b"mdat") - 4)


def doubled(kind):
    """The file with one box of its description twice."""
    start = PLAIN.index(kind) - 4
    (size,) = struct.unpack_from(">I", PLAIN, start)
    data = PLAIN[: start + size] + PLAIN[start:]
    for outer in (b"meta", b"iprp") if kind == b"ipco" else (b"meta",):
        at = data.index(outer) - 4
        data = data[:at] + struct.pack(">I", struct.unpack_from(">I", data, at)[0] + size) + data[at + 4 :]
    return data


@pytest.mark.parametrize("kind", [b"pitm", b"iloc", b"iinf", b"iprp", b"ipco"])
def test_what_a_file_says_twice_is_refused(kind, monkeypatch):
    """Decoders go by the first or by the last."""
    assert read_container(PLAIN).pixels(1) == 256
    refused(doubled(kind), monkeypatch, "is a damaged HEIC or AVIF file: it describes its parts twice")


def test_a_second_description_is_refused_and_what_follows_the_last_box_is_left(photo, monkeypatch):
    data = ENCODERS["heic"](photo)
    assert near(decode_picture(data + b"\xff" * 100, "image"), photo)
    refused(PLAIN + PLAIN[META], monkeypatch, "is a damaged HEIC or AVIF file: it describes its parts twice")


def nested(depth):
    items = [(b"iden", b"", [1]) for _ in range(depth)]
    return heif(items, [ispe(16, 16)], [(b"dimg", k, [k + 1]) for k in range(1, depth)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            heif([(b"grid", b"", [1])], [ispe(60_000, 60_000), box(b"hvcC", bytes(23))]),
            "has 3,600,000,000 coded pixels",
        ),
        (heif([(b"iden", b"", [1])], [ispe(16, 16)], [(b"dimg", 1, [1])]), "is a damaged .*: its parts are nested too"),
        (nested(20), "is a damaged .*: its parts are nested too deep"),
        (heif([(b"hvc1", b"x" * 1000, [1])], [box(b"hvcC", bytes(23))], extents={1: 60_000}), ".*: its parts overlap"),
        (heif([(b"hvc1", b"", [1])] * 1001, [ispe(16, 16)]), "is a damaged .*: it has more than 1,000 parts"),
        (heif([(b"hvc1", b"", [1])], [ispe(1, 1)] * 10_001), "is a damaged .*: it has more than 10,000 boxes"),
        (heif([(b"hvc1", bytes(300_000), [1])], [box(b"hvcC", bytes(23))]), ".*: a picture has countless parts"),
        (heif([(b"av01", b"\x12\0" * 30_000, [1])], [box(b"av1C", bytes(4))]), ".*: a picture has countless parts"),
        (heif([(b"hvc1", b"", [1])], [ispe(16, 16)])[:-60], "is a damaged HEIC or AVIF file"),
    ],
)
def test_a_file_that_asks_for_too_much_is_refused_before_it_is_opened(data, words, monkeypatch):
    refused(data, monkeypatch, words)


@every_format
def test_any_damage_is_unreadable_or_a_picture(encode):
    data = encode(Image.effect_noise((24, 24), 50).convert("RGB"))
    for position in range(min(len(data), 500)):
        damaged = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        try:
            assert decode_picture(damaged, "image").mode == "RGB"
        except JobError:
            pass


@every_format
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_said_to_be_so(encode, kept):
    data = encode(Image.effect_noise((200, 200), 50).convert("RGB"))
    for end in (round(len(data) * kept), len(data) - 1):
        with pytest.raises(JobError, match="^image_unreadable: image is a damaged HEIC or AVIF file: it was cut off$"):
            decode_picture(data[:end], "image")


def test_the_sizes_of_large_pictures_are_read_whatever_their_encoder_wrote():
    """Headers differ by size, depth and speed."""
    for size, options in (((2000, 1500), {"speed": 10}), ((640, 4096), {"speed": 9, "range": "limited"})):
        data = file_of(Image.new("L", size), "AVIF", **options)
        assert read_container(data).pixels(1) == size[0] * size[1]
    for size in ((2000, 1504), (640, 4096)):
        data = heic_of(Image.new("RGB", size), enc_params={"preset": "ultrafast"})
        assert read_container(data).pixels(1) == size[0] * size[1]
    assert Image.open(io.BytesIO(file_of(Image.new("L", (64, 64)), "AVIF"))).size == (64, 64)
