"""ICC profiles of the spaces that pictures come in, made from their published numbers, and some that lie."""

import random
import struct

from qwen_worker.pictures.icc import (
    D65,
    P3_PRIMARIES,
    SRGB_CURVE,
    SRGB_PRIMARIES,
    Primaries,
    assemble,
    fixed,
    matrix_profile,
    text,
)

D50_XY = (0.3457, 0.3585)
DISPLAY_P3 = matrix_profile("Display P3", Primaries(*P3_PRIMARIES), SRGB_CURVE)
ADOBE_RGB = matrix_profile("Adobe RGB", Primaries((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65), (563 / 256,))
PROPHOTO = matrix_profile("ProPhoto", Primaries((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50_XY), (1.8,))
# sRGB as others write it: another name, and primaries that are rounded otherwise.
OTHER_SRGB = matrix_profile("sRGB of a camera", Primaries((0.6402, 0.3301), *SRGB_PRIMARIES[1:]), SRGB_CURVE)


def grey(gamma=1.8):
    curve = b"para" + struct.pack(">IHH", 0, 0, 0) + fixed(gamma)
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    data = {b"desc": text("grey"), b"cprt": text("CC0"), b"wtpt": white, b"kTRC": curve}
    return assemble(b"mntr", b"GRAY", data)


def cmyk():
    """A press whose inks darken each other more than Pillow's own conversion knows: a table of 2 points an ink."""
    table = bytearray()
    for corner in range(16):
        cyan, magenta, yellow, black = (corner >> bit & 1 for bit in (3, 2, 1, 0))
        lightness = 95 - 35 * cyan - 45 * magenta - 8 * yellow - (10 if black and cyan + magenta + yellow else 0)
        lightness = max(4, lightness - 80 * black)
        a = 0 if black else 128 * 0.55 * magenta - 128 * 0.3 * cyan
        b = 0 if black else 128 * 0.7 * yellow - 128 * 0.4 * cyan
        table += bytes([round(lightness * 2.55), round(128 + a), round(128 + b)])
    ramp = bytes(range(256))
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    profile = bytearray(assemble(b"prtr", b"CMYK", {b"desc": text("press"), b"wtpt": white, b"A2B0": lut}))
    profile[20:24] = b"Lab "
    return bytes(profile)


def scanner():
    """An RGB profile that leads out of its space and not into it: a table towards Lab and none back."""
    table = bytearray()
    for corner in range(8):
        red, green, blue = (corner >> bit & 1 for bit in (2, 1, 0))
        lightness = 30 * red + 55 * green + 15 * blue
        table += bytes(
            [round(lightness * 2.55), 128 + 40 * red - 40 * green, 128 + 30 * (red + green) // 2 - 40 * blue]
        )
    ramp, identity = bytes(range(256)), fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1\0\0\0\0" + bytes([3, 3, 2, 0]) + identity + ramp * 3 + bytes(table) + ramp * 3
    profile = bytearray(assemble(b"scnr", b"RGB ", {b"desc": text("scanner"), b"A2B0": lut}))
    profile[20:24] = b"Lab "
    return bytes(profile)


def table(points=86):
    """An RGB profile of nearly 4 MB: a table of so many points a colour, of colours without order."""
    ramp, order = struct.pack(">4096H", *range(0, 65536, 16)), random.Random(0)
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft2\0\0\0\0" + bytes([3, 3, points, 0]) + identity + struct.pack(">HH", 4096, 4096)
    lut += ramp * 3 + order.randbytes(6 * points**3) + ramp * 3
    return assemble(b"scnr", b"RGB ", {b"desc": text("table"), b"A2B0": lut})


def chained(elements=100_000):
    """A profile of a small file that would pass each colour through so many matrices."""
    matrix = b"matf\0\0\0\0" + struct.pack(">HH12f", 3, 3, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    start = 16 + 8 * elements
    chain = b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, elements)
    chain += struct.pack(">II", start, len(matrix)) * elements + matrix
    return assemble(b"mntr", b"RGB ", {b"desc": text("chain"), b"D2B0": chain})
