"""HEIC and AVIF before they are decoded: boxes in boxes, whose items are coded pictures or put others together.

A file of a few kilobytes may ask for gigabytes, or for a thousand large pictures one after another: what decoding it
would take is added up here. Knows nothing of the decoders.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .coded_sizes import Malformed, av1_extent, hevc_extent
from .structure import unreadable_error

MAX_BOXES = 10_000
MAX_ITEMS = 1_000  # a phone's photo of 48 megapixels has some three hundred
MAX_DEPTH = 4  # of items that are put together from others
# By the box of a decoder's configuration, the brand by which a file is handed to that decoder as a still picture: by
# its own brand it may be taken for a sequence, or for a picture of the other decoder.
BRANDS = {b"hvcC": b"heic", b"av1C": b"avif"}
SEQUENCES = (b"avis", b"hevc", b"hevx", b"msf1")  # the brands of files of several pictures
FOLDERS = {b"iprp", b"ipco"}  # boxes that hold boxes and nothing else
ONCE = {*FOLDERS, b"pitm", b"idat", b"iinf", b"iref", b"iloc"}
TOP_BOXES = {b"ftyp", b"meta", b"mdat", b"moov", b"free"}  # that a file is made of
CUT_OFF = "it was cut off"
TOGETHER = {b"grid", b"iovl", b"iden"}  # items that are made of others


def is_container(data: bytes) -> bool:
    return data[4:8] == b"ftyp"


def is_sequence(data: bytes) -> bool:
    """Whether a file is, by its own brand, of pictures that follow one another in time."""
    return is_container(data) and data[8:12] in SEQUENCES


@dataclass
class Item:
    kind: bytes = b""
    extents: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])  # method, offset, length
    properties: list[int] = field(default_factory=list[int])  # their numbers, from 1
    parts: list[int] = field(default_factory=list[int])  # the items that it is made of, as often as they are in it


@dataclass
class Container:
    """The items of a file. `properties`: type and content of each box that items share."""

    data: bytes
    primary: int = -1
    items: dict[int, Item] = field(default_factory=dict[int, Item])
    properties: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    alphas: dict[int, list[int]] = field(default_factory=dict[int, list[int]])  # by item, those that go with it
    stored: bytes = b""  # data of items within the description itself
    is_cut_off: bool = False  # within one of the boxes that it is made of
    boxes_left: int = MAX_BOXES
    described: set[bytes] = field(default_factory=set[bytes])  # by the types of boxes
    counted: dict[int, int] = field(default_factory=dict[int, int])  # pixels by item

    def __post_init__(self):
        self.bytes_left = len(self.data)

    def require_first(self, kind: bytes) -> None:
        if kind in self.described:
            raise Malformed("it describes its parts twice")
        self.described.add(kind)

    def item(self, number: int) -> Item:
        if number not in self.items and len(self.items) >= MAX_ITEMS:
            raise Malformed(f"it has more than {MAX_ITEMS:,} parts")
        return self.items.setdefault(number, Item())

    def properties_of(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        for index in self.item(number).properties:
            if 0 < index <= len(self.properties):
                yield self.properties[index - 1]

    def content(self, number: int) -> bytes:
        """The item's own bytes, from wherever they are. Items of a file do not share them."""
        sources, pieces = {0: self.data, 1: self.stored}, list[bytes]()
        for method, offset, length in self.item(number).extents:
            source = sources.get(method, b"")
            if method == 0 and offset + max(length, 1) > len(source):
                raise Malformed(CUT_OFF)
            pieces.append(source[offset : offset + length] if length else source[offset:])
            self.bytes_left -= len(pieces[-1])
            if self.bytes_left < 0:
                raise Malformed("its parts overlap")
        return b"".join(pieces)

    def pixels(self, number: int, depth: int = 0) -> int:
        """How many pixels are decoded for the item, each as often as it is."""
        if number in self.counted:
            return self.counted[number]
        if depth > MAX_DEPTH:
            raise Malformed("its parts are nested too deep")
        item = self.item(number)
        named = max((area(body) for kind, body in self.properties_of(number) if kind == b"ispe"), default=0)
        parts = sum(self.pixels(part, depth + 1) * count for part, count in Counter(item.parts).items())
        self.counted[number] = max(named, parts if item.kind in TOGETHER else self.coded_pixels(number))
        return self.counted[number]

    def coded_pixels(self, number: int) -> int:
        """The pixels of a coded picture by its own headers and those of its configuration, whatever size is named."""
        pixels, pictures = 0, 1
        for kind, body in self.properties_of(number):
            if kind == b"hvcC" and len(body) > 22:
                largest, pictures = hevc_extent(self.content(number), (body[21] & 3) + 1)
                pixels = max(pixels, largest, configured_hevc(body))
            elif kind == b"av1C":
                largest, pictures = av1_extent(self.content(number))
                pixels = max(pixels, largest, av1_extent(body[4:])[0])
        return pixels * max(1, pictures)

    def brand(self) -> bytes:
        """The brand of a still picture for the one decoder that the items need. Raises `Malformed`."""
        brands = {BRANDS[kind] for kind, _ in self.properties if kind in BRANDS}
        if len(brands) != 1:
            raise Malformed("it holds no picture of HEVC or AV1" if not brands else "it holds pictures of both kinds")
        return brands.pop()

    def coded_colours(self) -> tuple[int, int] | None:
        """Primaries and transfer of the primary item by their numbers in H.273, where it says them so."""
        for kind, body in self.properties_of(self.primary):
            if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
                primaries, transfer = struct.unpack_from(">HH", body, 4)
                return primaries, transfer
        return None


def area(extents: bytes) -> int:
    """The pixels of an item by its property `ispe`."""
    width, height = struct.unpack_from(">II", extents, 4)
    return width * height


def configured_hevc(body: bytes) -> int:
    """The pixels of the largest picture that the units within an `hvcC` announce."""
    found, start = 0, 23
    for _ in range(body[22]):
        (count,) = struct.unpack_from(">H", body, start + 1)
        start += 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", body, start)
            found = max(found, hevc_extent(body[start : start + 2 + length], 2)[0])
            start += 2 + length
    return found


def read_container(data: bytes) -> Container:
    """The items of a HEIC or AVIF file. Raises `Malformed` or `struct.error`.

    What the file says twice is refused: a decoder might go by the other one.
    """
    container = Container(data)
    for kind, start, end in boxes(container, 0, len(data), may_end_early=True):
        if kind == b"meta":
            container.require_first(kind)
            for inner, inner_start, inner_end in boxes(container, start + 4, end):
                read_description(container, inner, inner_start, inner_end)
    if container.primary not in container.items:
        raise Malformed(CUT_OFF if container.is_cut_off else "it has no still picture")
    return container


def boxes(container: Container, start: int, end: int, may_end_early: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box between two places of the file.

    `may_end_early`: what is no box at the end is left, as some phones append it.
    """
    while start + 8 <= end:
        container.boxes_left -= 1
        size, kind = struct.unpack_from(">I4s", container.data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", container.data, start + 8), 16
        size = size or end - start  # 0: to the end
        if may_end_early and (size < head or start + size > end):
            container.is_cut_off = kind in TOP_BOXES
            return
        if size < head or start + size > end:
            raise Malformed("its boxes do not fit into each other")
        if container.boxes_left < 0:
            raise Malformed(f"it has more than {MAX_BOXES:,} boxes")
        yield kind, start + head, start + size
        start += size


def read_description(container: Container, kind: bytes, start: int, end: int) -> None:
    """Take in one box of the file's description."""
    if kind in ONCE:
        container.require_first(kind)
    body = container.data[start:end]
    if kind in FOLDERS:
        for inner, inner_start, inner_end in boxes(container, start, end):
            if kind == b"ipco":
                container.properties.append((inner, container.data[inner_start:inner_end]))
            else:
                read_description(container, inner, inner_start, inner_end)
    elif kind == b"pitm":
        container.primary = int.from_bytes(body[4 : 8 if body[0] else 6], "big")
    elif kind == b"idat":
        container.stored = body
    elif kind == b"iinf":
        for _, inner_start, inner_end in boxes(container, start + (8 if body[0] else 6), end):
            read_item_type(container, container.data[inner_start:inner_end])
    elif kind == b"iref":
        for inner, inner_start, inner_end in boxes(container, start + 4, end):
            read_references(container, inner, container.data[inner_start:inner_end], 4 if body[0] else 2)
    elif kind == b"iloc":
        read_places(container, Fields(body))
    elif kind == b"ipma":
        read_associations(container, Fields(body))


class Fields:
    """Reads numbers of so many bytes one after another. Raises `Malformed` beyond the end."""

    def __init__(self, body: bytes, start: int = 0):
        self.body, self.position = body, start

    def read(self, size: int) -> int:
        self.position += size
        if self.position > len(self.body):
            raise Malformed("a box is cut off")
        return int.from_bytes(self.body[self.position - size : self.position], "big")


def read_item_type(container: Container, body: bytes) -> None:
    fields = Fields(body)
    version = fields.read(4) >> 24
    number = fields.read(4 if version == 3 else 2)
    fields.read(2)
    if container.item(number).kind:
        raise Malformed("it describes a part twice")
    container.item(number).kind = fields.read(4).to_bytes(4, "big")


def read_references(container: Container, kind: bytes, body: bytes, size: int) -> None:
    fields = Fields(body)
    source = fields.read(size)
    targets = [fields.read(size) for _ in range(fields.read(2))]
    if kind == b"dimg":
        container.item(source).parts += targets
    elif kind == b"auxl":
        for target in targets:
            container.alphas.setdefault(target, []).append(source)


def read_places(container: Container, fields: Fields) -> None:
    """Where the items' data is."""
    version = fields.read(4) >> 24
    sizes = fields.read(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(fields.read(4 if version == 2 else 2)):
        item = container.item(fields.read(4 if version == 2 else 2))
        method = fields.read(2) & 15 if version else 0
        fields.read(2)
        base = fields.read(base_size)
        for _ in range(fields.read(2)):
            fields.read(index_size if version else 0)
            item.extents.append((method, base + fields.read(offset_size), fields.read(length_size)))


def read_associations(container: Container, fields: Fields) -> None:
    """Which properties the items have."""
    head = fields.read(4)
    version, is_wide = head >> 24, head & 1
    for _ in range(fields.read(4)):
        item = container.item(fields.read(4 if version else 2))
        for _ in range(fields.read(1)):
            item.properties.append(fields.read(2) & 0x7FFF if is_wide else fields.read(1) & 0x7F)


def require_decodable(data: bytes, label: str, max_pixels: int) -> tuple[bytes, tuple[int, int] | None]:
    """The file of a still picture, and primaries and transfer where it says its colours by numbers.

    Of a sequence the still picture is taken that goes with it. Raises `JobError` image_unreadable for a file whose
    decoding would take more than `max_pixels`, whatever size it names.
    """
    try:
        container = read_container(data)
        numbers = [container.primary, *container.alphas.get(container.primary, [])]
        pixels, brand = sum(container.pixels(number) for number in numbers), container.brand()
    except (Malformed, struct.error, IndexError) as error:
        reason = str(error) if isinstance(error, Malformed) else "a box is cut off"
        raise unreadable_error(label, f"is a damaged HEIC or AVIF file: {reason}") from None
    if pixels > max_pixels:
        raise unreadable_error(label, f"has {pixels:,} coded pixels, more than pictures of at most {max_pixels:,} have")
    return data[:8] + brand + data[12:], container.coded_colours()
