"""What photos take of a process's memory: no more than so many times their own pixels, and bombs next to nothing."""

import struct
import zlib

import pytest
from PIL import Image

from benchmarks.photos import CASES, measure, one_process, peak_bytes

from ..conftest import file_of
from .test_photos import heic_bomb

SIDE, WHOLE_SIDE = 3000, 7000  # pixels of a square photo, and with --prove
# By the bytes of a number: times the bytes of a photo's pixels that are held at once, and the bytes beside them that
# do not grow with the photo, as planes of the drawn picture and what the allocator keeps. Pillow has four bytes for a
# pixel of RGB. There are two photos, before and after, and a mask; and of noise, which has as many bytes in a file as
# in memory, the file, its base64 and the body that is measured.
MOST_TIMES = {"noise": 5.5, "16 bits": 3.5}
MOST_BESIDE = {"noise": 50, "16 bits": 120}  # MB
MOST_REFUSED_BYTES = 30_000_000


@pytest.mark.parametrize("case", CASES)
def test_a_large_photo_takes_so_many_times_its_own_pixels_at_most(case, sample):
    side = sample(SIDE, WHOLE_SIDE)
    row = measure(case, (side, side))
    kind = case.partition(",")[0]
    assert row["photo, MB"] < row["most, MB"] <= MOST_TIMES[kind] * row["photo, MB"] + MOST_BESIDE[kind], row


def png_bomb():
    """A PNG of 900 megapixels of black."""
    side = 30_000
    pixels = zlib.compressobj(9)
    packed = b"".join(pixels.compress(bytes(side // 8 + 1)) for _ in range(side)) + pixels.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def refuse(file):
    """How a file is refused, and by how many bytes its process has grown at most."""
    from qwen_worker.errors import JobError
    from qwen_worker.memory.machine import resident_bytes
    from qwen_worker.pictures.images import load_picture

    load_picture(file_of(Image.new("RGB", (64, 64))), "image", print)
    before = resident_bytes()
    try:
        picture = load_picture(file, "image", print)
        words = f"it is read, {picture.size}"
    except JobError as error:
        words = str(error)
    return words, peak_bytes() - before


@pytest.mark.parametrize(
    ("bomb", "sentence"),
    [(heic_bomb, "image has 122,880,000 coded pixels"), (png_bomb, "image must have at most 50,000,000 pixels")],
)
def test_a_small_file_that_asks_for_much_is_refused_before_it_is_decoded(bomb, sentence):
    file = bomb()
    assert len(file) < 200_000
    with one_process() as process:
        words, grown = process.submit(refuse, file).result()
    assert sentence in words and grown < MOST_REFUSED_BYTES, (words, grown)
