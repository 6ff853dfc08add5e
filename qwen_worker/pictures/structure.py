"""What a picture file says of itself before it is decoded: files that would take minutes or gigabytes are refused.

Knows nothing of pixels.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from ..errors import JobError
from ..jobs.values import Warn
from .icc import MAX_BYTES as MAX_PROFILE_BYTES

# Some small files take minutes to decode: a progressive JPEG repeats its scans over the whole picture, a JPEG, PNG or
# TIFF may consist of millions of empty pieces. Cameras stay far below these bounds.
MAX_SCANS, MAX_PIECES = 100, 20_000
LARGE_PROFILE_BYTES = 1_000_000  # Pillow takes a little more
PNG_START = b"\x89PNG\r\n\x1a\n"
# Bytes of the chunks that have one length alone, tRNS by the colour type of the head. Other decoders leave out a chunk
# of another length, and Pillow refuses the whole picture.
PNG_BYTES, TRANSPARENCY_BYTES = {b"cHRM": 32, b"gAMA": 4, b"sRGB": 1, b"pHYs": 9}, {0: 2, 2: 6}
TIFF_PIECES = (273, 324)  # StripOffsets, TileOffsets
# What Pillow goes through one by one: markers of a JPEG, and bytes that fill the room before one. Within the pixels,
# 0xFF is followed by 0 or by the number of a restart.
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8\xd9\xdb-\xff]")
# By the file's first bytes: the byte order, and of the directory's offset, its count and one entry the layouts.
TIFFS = {
    b"II*\0": ("<", 4, "I", "H", "HHI4x"), b"MM\0*": (">", 4, "I", "H", "HHI4x"),
    b"II+\0": ("<", 8, "Q", "Q", "HHQ8x"), b"MM\0+": (">", 8, "Q", "Q", "HHQ8x"),
}  # fmt: skip

STARTS = {PNG_START: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", **dict.fromkeys(TIFFS, "TIFF")}


def unreadable_error(label: str, reason: str) -> JobError:
    return JobError("image_unreadable", f"{label} {reason}")


def format_of(data: bytes) -> str | None:
    """The format that a file's first bytes name without doubt, as Pillow calls it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in STARTS.items() if data.startswith(start)), None)


def require_few_pieces(data: bytes, label: str) -> None:
    """Refuse a JPEG, PNG or TIFF of so many pieces that opening or decoding it would take minutes."""
    scans, pieces = 0, 0
    if data[:2] == b"\xff\xd8":
        scans = data.count(b"\xff\xda")
        pieces = sum(1 for _ in itertools.islice(JPEG_MARKER.finditer(data), MAX_PIECES + 1))
    elif data[:4] == PNG_START[:4]:
        pieces = sum(1 for _ in itertools.islice(png_chunks(data), MAX_PIECES + 1))
    elif data[:4] in TIFFS:
        pieces = tiff_pieces(data)
    if scans > MAX_SCANS or pieces > MAX_PIECES:
        raise unreadable_error(label, f"has at least {max(scans, pieces):,} parts, far more than pictures have")


def tiff_pieces(data: bytes) -> int:
    """How many strips or tiles the first directory of a TIFF names; 0 where it cannot be read."""
    order, start, offset_layout, count_layout, entry_layout = TIFFS[data[:4]]
    entry, pieces = struct.Struct(order + entry_layout), 0
    try:
        (offset,) = struct.unpack_from(order + offset_layout, data, start)
        (count,) = struct.unpack_from(order + count_layout, data, offset)
        offset += struct.calcsize(order + count_layout)
        for tag, _, values in entry.iter_unpack(data[offset : offset + min(count, 0xFFFF) * entry.size]):
            pieces = max(pieces, values) if tag in TIFF_PIECES else pieces
    except struct.error:  # what is cut off is refused by whoever opens it
        return pieces
    return pieces


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; start and end are of the whole chunk."""
    start = len(PNG_START)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        yield kind, start, end
        start = end


def png_colours(data: bytes, label: str, warn: Warn) -> tuple[bytes, dict[str, Any]]:
    """A PNG that Pillow opens whatever describes it, and what Pillow leaves out of `info`: cICP, and a large profile.

    Pillow refuses the whole picture for a profile of more than a megabyte, and for a chunk of a wrong length; `warn` is
    told of the latter.
    """
    info: dict[str, Any] = {}
    damaged: list[str] = []
    kept, kept_to = list[bytes](), 0
    for kind, start, end in png_chunks(data):
        if kind == b"IDAT" or end > len(data):  # what describes a picture comes before its pixels
            break
        body = data[start + 8 : end - 4]
        profile = inflated(body.partition(b"\0")[2][1:]) if kind == b"iCCP" else b""
        if kind == b"cICP" and len(body) >= 2:
            info["cicp"] = (body[0], body[1])
        if is_damaged_chunk(kind, body, data[25]):
            damaged.append(kind.decode())
        elif len(profile) > LARGE_PROFILE_BYTES:
            info["icc_profile"] = profile
        else:
            continue
        kept.append(data[kept_to:start])
        kept_to = end
    if damaged:
        names = ", ".join(dict.fromkeys(damaged))
        warn(f"{label} is a PNG file with damaged chunks, which are left out of account: {names}")
    return b"".join([*kept, data[kept_to:]]) if kept else data, info


def is_damaged_chunk(kind: bytes, body: bytes, colour_type: int) -> bool:
    """Whether Pillow would refuse the picture for this chunk before the pixels."""
    if kind == b"iCCP":
        return body.partition(b"\0")[2][:1] != b"\0"  # the name's end, and the only method of compression
    length = TRANSPARENCY_BYTES.get(colour_type) if kind == b"tRNS" else PNG_BYTES.get(kind)
    return length is not None and len(body) != length


def inflated(packed: bytes) -> bytes:
    """What a zlib stream holds, up to the largest profile and one byte."""
    try:
        return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
