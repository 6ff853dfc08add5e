"""ICC profiles as files: which of them are safe to hand to LittleCMS, and small ones made from a few numbers.

Knows nothing of pictures (`colour.py`).
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

MAX_BYTES = 4_000_000  # the profiles of presses have up to three million
MAX_TAGS = 100  # as LittleCMS
HEADER_BYTES, TAG_BYTES = 128, 12
CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")  # of pictures; a link between devices or a list of names describes none
SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # by the header's field, Pillow's mode
CONNECTIONS = (b"XYZ ", b"Lab ")
# A chain of any number of processing elements. In a small file it may have half a million of them, and LittleCMS would
# pass every colour through all.
CHAIN = b"mpet"

D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white of every profile
D65 = (0.3127, 0.3290)  # xy
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # xy of red, green and blue
P3_PRIMARIES = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
BT2020_PRIMARIES = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # (a v + b) ** gamma from the last number on, else c v
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))


class UnusableProfile(ValueError):
    """A profile that is left out of account; the words say why."""


class Primaries(NamedTuple):
    """The xy of a space's red, green, blue and white."""

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float] = D65


def space_of_profile(profile: bytes) -> str:
    """Pillow's mode of the profile's colours: RGB, L or CMYK.

    Looks at header and directory alone, and takes the same time for all files. Raises `UnusableProfile`.
    """
    if len(profile) > MAX_BYTES:
        raise UnusableProfile(f"it has {len(profile) / 1e6:.1f} MB and at most {MAX_BYTES / 1e6:g} MB are read")
    if len(profile) < HEADER_BYTES + 4 or profile[36:40] != b"acsp":
        raise UnusableProfile("it is no ICC profile")
    size, (tags,) = struct.unpack(">I", profile[:4])[0], struct.unpack(">I", profile[HEADER_BYTES : HEADER_BYTES + 4])
    directory_end = HEADER_BYTES + 4 + tags * TAG_BYTES
    if not directory_end <= size <= len(profile) or tags > MAX_TAGS:
        raise UnusableProfile("it is damaged")
    for start in range(HEADER_BYTES + 4, directory_end, TAG_BYTES):
        offset, length = struct.unpack(">II", profile[start + 4 : start + TAG_BYTES])
        if offset + length > size:
            raise UnusableProfile("it is damaged")
        if profile[offset : offset + 4] == CHAIN:
            raise UnusableProfile("it has chains of processing elements, which are not read")
    if profile[12:16] not in CLASSES or profile[20:24] not in CONNECTIONS or profile[16:20] not in SPACES:
        raise UnusableProfile("it is not one of an RGB, grey or CMYK picture")
    return SPACES[profile[16:20]]


def matrix_profile(name: str, primaries: Primaries, curve: Sequence[float]) -> bytes:
    """The profile of an RGB space, half a kilobyte, the same bytes each time.

    `curve`: a gamma, or the five numbers of `SRGB_CURVE`'s form.
    """
    colorants, adaptation = colorants_of(primaries)
    function = 0 if len(curve) == 1 else 3
    curve_data = b"para" + struct.pack(">IHH", 0, function, 0) + fixed(*curve)
    data = {
        b"desc": text(name),
        b"cprt": text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50),
        b"chad": b"sf32\0\0\0\0" + fixed(*adaptation),
        b"rXYZ": b"XYZ \0\0\0\0" + fixed(*colorants[0]),
        b"gXYZ": b"XYZ \0\0\0\0" + fixed(*colorants[1]),
        b"bXYZ": b"XYZ \0\0\0\0" + fixed(*colorants[2]),
        b"rTRC": curve_data,
        b"gTRC": curve_data,
        b"bTRC": curve_data,
    }
    return assemble(b"mntr", b"RGB ", data)


def assemble(kind: bytes, space: bytes, data: dict[bytes, bytes]) -> bytes:
    """The file of a profile of version 4. `data`: by signature, each tag's; equal ones stand in the file once."""
    directory, body, places = struct.pack(">I", len(data)), b"", dict[bytes, int]()
    start = HEADER_BYTES + 4 + TAG_BYTES * len(data)
    for signature, value in data.items():
        if value not in places:
            places[value] = start + len(body)
            body += value + bytes(-len(value) % 4)
        directory += signature + struct.pack(">II", places[value], len(value))
    header = struct.pack(">I4xI", start + len(body), 0x04200000) + kind + space + b"XYZ "
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*D50)
    return header.ljust(HEADER_BYTES, b"\0") + directory + body


def text(words: str) -> bytes:
    """A tag's text in one language."""
    encoded = words.encode("utf-16-be")
    return b"mluc" + struct.pack(">III4sII", 0, 1, 12, b"enUS", len(encoded), 28) + encoded


def fixed(*numbers: float) -> bytes:
    """The numbers with 16 bits before and 16 after the point."""
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def colorants_of(primaries: Primaries) -> tuple[list[list[float]], list[float]]:
    """XYZ of red, green and blue where white is D50, and the adaptation of white to D50, row by row.

    Raises `UnusableProfile` for numbers that span no space.
    """
    import numpy as np

    def xyz(point: tuple[float, float]) -> list[float]:
        x, y = point
        if not 0 < y <= 1 or not 0 <= x <= 1:
            raise UnusableProfile("its primaries are no colours")
        return [x / y, 1.0, (1 - x - y) / y]

    corners = np.array([xyz(point) for point in primaries[:3]]).T  # (XYZ, primaries)
    white, bradford = np.array(xyz(primaries.white)), np.array(BRADFORD)
    if abs(np.linalg.det(corners)) < 1e-6:
        raise UnusableProfile("its primaries span no space")
    colorants = corners * np.linalg.solve(corners, white)
    gains = (bradford @ np.array(D50)) / (bradford @ white)
    adaptation = np.linalg.inv(bradford) @ np.diag(gains) @ bradford
    adapted = (adaptation @ colorants).T
    if not np.all(np.abs(adapted) < 100):
        raise UnusableProfile("its primaries span no space")
    return adapted.tolist(), adaptation.ravel().tolist()
