"""Pictures of 16 bits, PNG and TIFF, which Pillow reads with 8: read by imagecodecs, and written as PNG.

imagecodecs wraps libpng and libtiff, which do no more here than decode a picture whose header Pillow has read and
whose size has been checked. It is optional. Knows nothing of colours.
"""

import struct
import zlib
from typing import TYPE_CHECKING

from ..errors import JobError
from ..jobs.values import Warn
from .images import DECODE_ERRORS, ORIENTATION, open_picture
from .structure import PNG_START, TIFFS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEPTH_PLACE = 24  # of the byte in a PNG that says how many bits a number has
BITS_PER_SAMPLE, SAMPLE_FORMAT, PHOTOMETRIC = 258, 339, 262  # TIFF's tags
BLACK_IS_ZERO, RGB = 1, 2  # the photometrics that are read
FLIPS = {2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}  # of rows, of columns
STRIP_ROWS = 64  # that are written at once


def is_deep(data: bytes) -> bool:
    """Whether a file is a PNG or TIFF of 16 bits, as far as its header says."""
    if data.startswith(PNG_START):
        return data[DEPTH_PLACE : DEPTH_PLACE + 1] == b"\x10"
    if data[:4] not in TIFFS:
        return False
    try:
        tags = getattr(open_picture(data, ""), "tag_v2", {})
    except (JobError, *DECODE_ERRORS):
        return False
    bits, formats = tags.get(BITS_PER_SAMPLE, ()), tags.get(SAMPLE_FORMAT, (1,))
    return set(bits) == {16} and set(formats) == {1} and tags.get(PHOTOMETRIC) in (BLACK_IS_ZERO, RGB)


def read_deep(data: bytes, label: str, size: tuple[int, int], warn: Warn) -> "NDArray[np.uint16] | None":
    """The upright numbers of a deep file, (height, width, 1 to 4); None, with a warning, where they cannot be had.

    `size`: the upright picture's, as Pillow has it.
    """
    try:
        import imagecodecs
    except ImportError:
        warn(f"{label} has 16 bits and is read with 8: imagecodecs is not installed (requirements-pictures.txt)")
        return None
    decode = imagecodecs.png_decode if data.startswith(PNG_START) else imagecodecs.tiff_decode
    try:
        numbers = decode(data)
    except (*DECODE_ERRORS, imagecodecs.PngError, imagecodecs.TiffError):
        numbers = None
    if numbers is not None and numbers.dtype == "uint16" and numbers.ndim in (2, 3):
        numbers = numbers[:, :, None] if numbers.ndim == 2 else numbers
        upright = turn(numbers, orientation_of(data))
        if upright.shape[1::-1] == size and upright.shape[2] in (1, 2, 3, 4):
            return upright
    warn(f"{label} has 16 bits and is read with 8: it is laid out in a way that is not read in 16")
    return None


def orientation_of(data: bytes) -> int:
    try:
        picture = open_picture(data, "")
        return picture.getexif().get(ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1


def turn(numbers: "NDArray[np.uint16]", orientation: int) -> "NDArray[np.uint16]":
    """The numbers upright, by the value of EXIF's orientation."""
    import numpy as np

    if orientation not in FLIPS:
        return numbers
    if orientation >= 5:
        numbers = numbers.swapaxes(0, 1)
    rows, columns = FLIPS[orientation]
    return np.ascontiguousarray(numbers[:: -1 if rows else 1, :: -1 if columns else 1])


def write_png(numbers: "NDArray[np.uint8 | np.uint16]", chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of 16 bits of the numbers, (height, width, 1 to 4). `chunks`: type and content of what stands before them.

    Each row is written as its difference to the one above it, high bytes and low bytes in turn, as PNG has them.
    """
    import numpy as np

    height, width, channels = numbers.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [PNG_START, chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    parts += [chunk(kind, content) for kind, content in chunks]
    compressor = zlib.compressobj(1)
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, STRIP_ROWS):
        rows = numbers[top : top + STRIP_ROWS].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
        filtered[:, 0] = 2  # the filter: what stands above is taken off
        np.subtract(rows, np.concatenate((above, rows[:-1])), out=filtered[:, 1:])
        above = rows[-1:]
        if packed := compressor.compress(filtered.tobytes()):
            parts.append(chunk(b"IDAT", packed))
    parts += [chunk(b"IDAT", compressor.flush()), chunk(b"IEND", b"")]
    return b"".join(parts)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
