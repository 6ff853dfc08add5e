"""HEIF files built box by box, with pictures of real encoders in them and sizes that lie."""

import struct


def box(kind, body, version=None, flags=0):
    head = b"" if version is None else struct.pack(">I", version << 24 | flags)
    return struct.pack(">I", 8 + len(head) + len(body)) + kind + head + body


def ispe(width, height):
    return box(b"ispe", struct.pack(">II", width, height), 0)


def heif(items, properties, references=(), brand=b"heic", extents=None):
    """A file whose primary item is the first.

    items: (type, content, numbers of properties from 1). references: (type, item, items). extents: how often an item's
    content is named.
    """

    def meta(starts):
        infos = [box(b"infe", struct.pack(">HH4sB", k, 0, kind, 0), 2) for k, (kind, *_) in enumerate(items, 1)]
        places = b""
        for k, (_, content, _) in enumerate(items, 1):
            count = (extents or {}).get(k, 1)
            places += struct.pack(">HHH", k, 0, count) + struct.pack(">II", starts[k - 1], len(content)) * count
        links = b"".join(
            struct.pack(">HB", k, len(numbers)) + bytes(numbers) for k, (_, _, numbers) in enumerate(items, 1)
        )
        refs = b"".join(
            box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))
            for kind, source, targets in references
        )
        body = box(b"hdlr", bytes(4) + b"pict" + bytes(13), 0) + box(b"pitm", struct.pack(">H", 1), 0)
        body += box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)) + places, 0)
        body += box(b"iinf", struct.pack(">H", len(items)) + b"".join(infos), 0)
        body += box(b"iref", refs, 0) if refs else b""
        shared = box(b"ipco", b"".join(properties)) + box(b"ipma", struct.pack(">I", len(items)) + links, 0)
        return box(b"meta", body + box(b"iprp", shared), 0)

    head = box(b"ftyp", brand + bytes(4) + b"mif1" + brand)
    start = len(head) + len(meta([0] * len(items))) + 8
    starts = [start + sum(len(content) for _, content, _ in items[:k]) for k in range(len(items))]
    return head + meta(starts) + box(b"mdat", b"".join(content for _, content, _ in items))


def grid(rows, columns, width, height):
    return struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)


def parts_of(data):
    """Configuration box and coded data of the primary item of a file with one picture."""
    from qwen_worker.pictures.boxes import read_container

    container = read_container(data)
    ((kind, body),) = (one for one in container.properties_of(container.primary) if one[0] in (b"hvcC", b"av1C"))
    return box(kind, body), container.content(container.primary)
