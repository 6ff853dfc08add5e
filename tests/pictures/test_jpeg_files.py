"""JPEGs that lost their end are read as viewers read them, and photos of too many pixels at a reduced scale."""

import re
import struct

import pytest
from PIL import Image, ImageChops, ImageDraw

from qwen_worker.errors import JobError
from qwen_worker.pictures.images import MAX_PIXELS
from qwen_worker.pictures.jpeg_files import read_scans

from ..conftest import file_of
from ..support.pictures import decode_picture


@pytest.fixture
def photo():
    """Noise of 512 x 512 without grey areas."""
    return Image.merge("RGB", [Image.effect_noise((512, 512), 60) for _ in range(3)])


def opened(data):
    warnings = []
    return decode_picture(data, "image", warn=warnings.append), warnings


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_jpeg_without_its_last_bytes_is_read_with_a_warning(photo, progressive, lost):
    data = file_of(photo, "JPEG", quality=80, progressive=progressive)
    whole = decode_picture(data, "image")
    found, (warning,) = opened(data[:-lost])
    rows = ImageChops.difference(found, whole).getbbox()
    assert rows is None or rows[1] >= 480
    assert (
        warning.startswith("image is a JPEG file that was cut off: ") and "% of the picture, at its bottom" in warning
    )


def test_how_much_is_missing_is_told_and_from_five_percent_on_refused(photo):
    data = file_of(photo, "JPEG", quality=80)
    found, (warning,) = opened(data[: round(len(data) * 0.97)])
    assert found.size == (512, 512) and re.search("cut off: [234] % of", warning)
    with pytest.raises(JobError, match="image_unreadable: image is a JPEG file that was cut off: 2[0-9] % of the pict"):
        decode_picture(data[: round(len(data) * 0.75)], "image")


@pytest.mark.parametrize("progressive", [False, True])
def test_zeros_where_a_download_stopped_are_no_part_of_the_picture(photo, progressive):
    """A decoder takes them for flat blocks."""
    data = file_of(photo, "JPEG", quality=80, progressive=progressive)
    for kept in (0.5, 0.75):
        end = round(len(data) * kept)
        with pytest.raises(JobError) as cut_off:
            decode_picture(data[:end], "image")
        with pytest.raises(JobError) as filled:
            decode_picture(data[:end] + bytes(len(data) - end), "image")
        assert str(filled.value) == str(cut_off.value) and " % of the picture are missing" in str(filled.value)
    found, (warning,) = opened(data[:-20] + bytes(20))
    assert found.size == (512, 512) and "less than 1 % of the picture" in warning
    assert opened(data + bytes(5000))[1] == []  # after its end anything may follow


def test_a_progressive_jpeg_without_whole_scans_is_refused(photo):
    """Every row of it is there, in colours and forms that are only hinted at."""
    data = file_of(photo, "JPEG", quality=80, progressive=True)
    scans = read_scans(data)
    assert scans.count > 5 and not scans.is_cut_off and scans.have_all_begun
    with pytest.raises(JobError, match="that was cut off: 100 % of the picture are missing"):
        decode_picture(data[: len(data) // 3], "image")


def test_the_thumbnail_in_a_jpeg_is_none_of_its_scans(photo):
    exif = Image.Exif()
    exif[0x9286] = file_of(photo.resize((32, 32)), "JPEG")  # a comment that happens to be a JPEG
    data = file_of(photo, "JPEG", exif=exif.tobytes())
    assert read_scans(data).count == 1 and data.count(b"\xff\xda") == 2
    assert opened(data)[1] == [] and len(opened(data[:-2])[1]) == 1


def huge(mode, size):
    """A photo of so many pixels: bright on its right, with a dark corner."""
    picture = Image.new(mode, size, 200)
    ImageDraw.Draw(picture).rectangle((0, 0, size[0] // 2, size[1] // 2), fill=20)
    return picture


@pytest.mark.parametrize("size", [(9280, 6944), (12000, 9000)])
def test_a_photo_of_64_or_108_megapixels_is_decoded_at_half_its_sides(size):
    data = file_of(huge("L", size), "JPEG")
    found, warnings = opened(data)
    assert found.size == (size[0] // 2, size[1] // 2) and not warnings
    assert found.width * found.height <= MAX_PIXELS
    corners = found.getpixel((10, 10)), found.getpixel((found.width - 10, found.height - 10))
    assert corners == ((20,) * 3, (200,) * 3)


def with_size(data, width, height):
    """The JPEG as if it had so many pixels; its data ends long before."""
    start = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def test_more_pixels_are_refused_before_they_are_decoded(photo):
    with pytest.raises(
        JobError, match="invalid_input: image must have at most 160,000,000 pixels as a JPEG, not 13000x"
    ):
        decode_picture(with_size(file_of(photo, "JPEG"), 13000, 13000), "image")
    progressive = file_of(photo, "JPEG", progressive=True, subsampling="4:4:4")
    with pytest.raises(
        JobError, match="at most 50,000,000 pixels as a progressive JPEG, not 10000x10000; send it as a"
    ):
        decode_picture(with_size(progressive, 10000, 10000), "image")
