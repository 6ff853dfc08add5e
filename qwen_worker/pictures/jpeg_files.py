"""JPEGs before they are decoded: whether the file lost its end and how much of the picture with it; large ones reduced.

Knows nothing of jobs or of what is done with the picture.
"""

import io
import re
from dataclasses import dataclass, field

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import InvalidInput
from ..jobs.values import Warn
from .structure import unreadable_error

MAX_PIXELS = 160_000_000  # of the file; a medium-format camera's. What is decoded of it is a quarter
# A JPEG of several scans, as progressive ones are, is whole in memory while it is decoded: two bytes for each number.
MAX_COEFFICIENT_BYTES = 400_000_000
MOST_MISSING = 0.05  # of a picture whose file was cut off
START, END = b"\xff\xd8", b"\xff\xd9"
# A byte that follows 0xff and is neither stuffing nor a restart within a scan.
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers whose segment names the components
SCAN, ALONE = 0xDA, (0x01, 0xD8)  # `ALONE`: markers without a segment
COEFFICIENTS = 64
SMALLEST_SCALE = 8  # at which a JPEG can be decoded: one pixel for a block
LARGE_PIXELS = 12_000_000  # so many take long enough to decode twice
LINE = 2  # rows of blocks that are coded together, as cameras do


@dataclass
class Scans:
    """What the file has of its picture. `last_start`: where the data of the last scan begins."""

    is_cut_off: bool = False
    count: int = 0
    last_start: int = 0
    # By component and coefficient, how many low bits are still to come.
    missing_bits: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    @property
    def have_all_begun(self) -> bool:
        """Whether no scan is missing altogether."""
        return bool(self.last_start) and not any(self.missing_bits.values())


def read_scans(data: bytes) -> Scans:
    """The scans of a JPEG; a walk from marker to marker."""
    scans, position = Scans(), len(START)
    while match := MARKER.search(data, position):
        position = match.end()
        kind = match[1][0]
        if kind == END[1]:
            return scans
        if kind in ALONE:
            continue
        segment = data[position + 2 : position + int.from_bytes(data[position : position + 2], "big")]
        position += 2 + len(segment)
        if kind in FRAMES and len(segment) > 5:
            for component in segment[6::3]:
                scans.missing_bits |= {(component, k): COEFFICIENTS for k in range(COEFFICIENTS)}
        elif kind == SCAN and len(segment) > 3:
            scans.count, scans.last_start = scans.count + 1, position
            components, (first, last, bits) = segment[1 : 1 + 2 * segment[0] : 2], segment[-3:]
            scans.missing_bits |= {(one, k): bits & 15 for one in components for k in range(first, min(last, 63) + 1)}
    scans.is_cut_off = True
    return scans


def reduce_large(picture: JpegImageFile, scans: Scans, label: str, max_pixels: int) -> None:
    """Have a picture of more than `max_pixels` decoded at half its width and height. Raises `InvalidInput`."""
    width, height = picture.size
    if width * height <= max_pixels:
        return
    if width * height > MAX_PIXELS:
        raise InvalidInput(f"{label} must have at most {MAX_PIXELS:,} pixels as a JPEG, not {width}x{height}")
    samples = [across * down for _, across, down, _ in picture.layer]
    if scans.count > 1 and 2 * width * height * sum(samples) > MAX_COEFFICIENT_BYTES * max(samples):
        raise InvalidInput(
            f"{label} must have at most {max_pixels:,} pixels as a progressive JPEG, not {width}x{height}; "
            "send it as a baseline JPEG"
        )
    picture.draft(None, (width // 2, height // 2))


def require_nearly_whole(data: bytes, scans: Scans, label: str, warn: Warn) -> None:
    """Warn of a JPEG that was cut off and shows nearly all of its picture. Raises `JobError` where more is missing."""
    share = missing_share(data, scans)
    percent = f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
    if share > MOST_MISSING:
        raise unreadable_error(label, f"is a JPEG file that was cut off: {percent} of the picture are missing")
    warn(f"{label} is a JPEG file that was cut off: {percent} of the picture, at its bottom, are missing")


def missing_share(data: bytes, scans: Scans) -> float:
    """How much of the picture the lost end of the file has taken with it, from the bottom: 0 to 1.

    Without its last scan's data the same picture is decoded once more: where both are equal, the scan has said nothing.
    """
    if not scans.have_all_begun:
        return 1.0
    whole, before = (decode_small(part, scans) for part in (data, data[: scans.last_start] + END))
    difference = ImageChops.difference(whole, before)
    if not (box := difference.getbbox()):
        return 1.0
    width, height = whole.size
    right = (difference.crop((0, box[3] - 1, width, box[3])).getbbox() or box)[2]
    rows = min(box[3], LINE)  # of blocks: the last ones end where the file does
    return 1 - (box[3] - rows + rows * right / width) / height


def decode_small(data: bytes, scans: Scans) -> Image.Image:
    """The picture at the smallest scale that shows what its last scan brings: of the only scan, whole blocks."""
    picture = Image.open(io.BytesIO(data), formats=("JPEG",))
    scale = SMALLEST_SCALE if scans.count == 1 else 1 + (picture.width * picture.height > LARGE_PIXELS)
    picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
    picture.load()
    return picture.convert("RGB")
