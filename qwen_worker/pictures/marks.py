"""What a picture's file says of where it comes from: machines read it, and no pixel changes.

The mark is XMP with IPTC's DigitalSourceType. It lies in the picture's `info` until the file is written. Knows nothing
of file formats; `encoding.encode_picture` writes it. `signing.py` signs the same statement.
"""

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from ..delivery_settings import Mark
from ..jobs.request import Drawing

if TYPE_CHECKING:
    from PIL import Image

XMP_KEY = "worker_xmp"  # in a picture's `info`; under `xmp` there may be what a caller's own file holds
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# A read-only packet of XMP, and so without the padding in which editors change it; the id is that of every packet.
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' Iptc4xmpExt:DigitalSourceType="{source}"{round}/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
# From the second edit on, how many a picture has had.
ROUND = ' xmlns:worker="urn:qwen-image-worker:1" worker:EditRound="{count}"'
OWN_MARK = re.compile(
    re.escape(XMP.format(source=SOURCE_TYPES + "SOURCE", round="ROUND").encode())
    .replace(b"SOURCE", rb"(\w{1,60})")
    .replace(b"ROUND", b"(?:%s)?" % re.escape(ROUND.format(count="COUNT").encode()).replace(b"COUNT", rb"(\d{1,6})"))
)


class Origin(StrEnum):
    """IPTC's terms for how a picture came about, as the last part of their URLs."""

    GENERATED = "trainedAlgorithmicMedia"
    EDITED = "compositeWithTrainedAlgorithmicMedia"
    GRADIENT = "algorithmicMedia"  # a stand-in from nothing: an algorithm drew it that was not trained
    FILTERED = "algorithmicallyEnhanced"  # a stand-in from the caller's picture


def origin_of(request: Drawing, is_stand_in: bool) -> Origin:
    """The origin of the request's pictures."""
    if request.uses_pictures:
        return Origin.FILTERED if is_stand_in else Origin.EDITED
    return Origin.GRADIENT if is_stand_in else Origin.GENERATED


def mark_pictures(pictures: "list[Image.Image]", origin: Origin, mark: Mark, edit_round: int | None = None) -> None:
    """Have the files of these pictures say where they come from, in the way that the operator chose.

    `edit_round`: which edit of the same picture this one is, where its file has said so.
    """
    if mark is Mark.NONE:
        return
    rounds = ROUND.format(count=edit_round) if edit_round and edit_round > 1 else ""
    for picture in pictures:
        picture.info[XMP_KEY] = XMP.format(source=SOURCE_TYPES + origin, round=rounds).encode()


def edits_of(file: bytes) -> int | None:
    """How many edits the picture in a file has had, by this worker's mark in it; None where it has none."""
    if not (mark := OWN_MARK.search(file)):
        return None
    return int(mark[2]) if mark[2] else int(mark[1].decode() in (Origin.EDITED, Origin.FILTERED))
