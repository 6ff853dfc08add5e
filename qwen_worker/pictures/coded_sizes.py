"""How many pixels the coded pictures of HEIC (HEVC) and AVIF (AV1) have, by the headers that their decoders go by.

The container around them may say anything else. Knows nothing of containers (`boxes.py`).
"""

from collections.abc import Iterator

MAX_UNITS = 20_000  # that are looked through in one coded picture
HEVC_PARAMETERS, AV1_SEQUENCE = 33, 1  # the types of the units that say the size
HEVC_SLICES, AV1_FRAMES = 32, (3, 6)  # HEVC's types below this one, and AV1's of these, are of pictures


class Malformed(ValueError):
    """A file that does not keep to its format."""


class Bits:
    """Reads a header bit by bit. Raises `Malformed` beyond its end."""

    def __init__(self, data: bytes):
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self.left:
            raise Malformed("a header is cut off")
        self.left -= count
        return self.value >> self.left & (1 << count) - 1

    def read_golomb(self) -> int:
        """A number with as many zeros before it as it has bits after its first."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise Malformed("a header has a number beyond all bounds")
        return (1 << zeros) - 1 + self.read(zeros)


def hevc_pixels(unit: bytes) -> int:
    """The pixels of the pictures that a sequence parameter set announces. `unit`: with its header of two bytes."""
    # A header has some hundred bytes at most before the size. 3 after two zeros is there for no decoder's sake.
    bits = Bits(unit[2:200].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    sub_layers = bits.read(3)
    bits.read(1)
    read_profile_tier_level(bits, sub_layers)
    bits.read_golomb()  # its number
    if bits.read_golomb() == 3:  # chroma of full size
        bits.read(1)
    return bits.read_golomb() * bits.read_golomb()


def read_profile_tier_level(bits: Bits, sub_layers: int) -> None:
    bits.read(88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.read(2 * (8 - sub_layers))
    for profile, level in present:
        bits.read(88 * profile + 8 * level)


def av1_pixels(unit: bytes) -> int:
    """The pixels of the pictures that a sequence header announces. `unit`: without its own header."""
    bits = Bits(unit[:200])
    bits.read(3 + 1)
    if bits.read(1):  # the short form for still pictures
        bits.read(5)
    else:
        read_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def read_operating_points(bits: Bits) -> None:
    delay_bits, has_model = 0, False
    if bits.read(1):  # timing
        bits.read(32 + 32)
        if bits.read(1):
            bits.read_golomb()
        if has_model := bool(bits.read(1)):
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_delays = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # the level
            bits.read(1)
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delays and bits.read(1):
            bits.read(4)


def hevc_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of a coded picture, each behind its length."""
    start = 0
    for _ in range(MAX_UNITS):
        if start + length_bytes > len(data):
            return
        length = int.from_bytes(data[start : start + length_bytes], "big")
        start += length_bytes + length
        yield data[start - length : start]
    raise Malformed("a picture has countless parts")


def av1_units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each unit of a coded picture."""
    start = 0
    for _ in range(MAX_UNITS):
        if start >= len(data):
            return
        head = data[start]
        start += 1 + (head >> 2 & 1)
        length = len(data) - start
        if head >> 1 & 1:
            length, start = read_leb128(data, start)
        yield head >> 3 & 15, data[start : start + length]
        start += length
    raise Malformed("a picture has countless parts")


def read_leb128(data: bytes, start: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for k in range(8):
        if start + k >= len(data):
            break
        value |= (data[start + k] & 127) << 7 * k
        if data[start + k] < 128:
            return value, start + k + 1
    raise Malformed("a length is cut off")


def hevc_extent(data: bytes, length_bytes: int) -> tuple[int, int]:
    """The pixels of the largest picture that the units announce, and how many pictures they are; 0 for none."""
    pixels, pictures = 0, 0
    for unit in hevc_units(data, length_bytes):
        kind = unit[0] >> 1 & 63 if unit else HEVC_SLICES
        if kind == HEVC_PARAMETERS:
            pixels = max(pixels, hevc_pixels(unit))
        # A picture may have many slices; the first bit of the first one is set.
        pictures += kind < HEVC_SLICES and unit[2:3] >= b"\x80"
    return pixels, pictures


def av1_extent(data: bytes) -> tuple[int, int]:
    """The pixels of the largest picture that the units announce, and how many pictures they are; 0 for none."""
    pixels, pictures = 0, 0
    for kind, unit in av1_units(data):
        if kind == AV1_SEQUENCE:
            pixels = max(pixels, av1_pixels(unit))
        pictures += kind in AV1_FRAMES
    return pixels, pictures
