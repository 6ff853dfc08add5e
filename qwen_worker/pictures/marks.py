"""What a picture's file says of where it comes from: machines read it, and no pixel changes.

The mark is XMP with IPTC's DigitalSourceType. It lies in the picture's `info` until the file is written. Knows nothing
of file formats; `encoding.encode_picture` writes it. `signing.py` signs the same statement.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

from ..delivery_settings import Mark
from ..jobs.request import Drawing, Edit

if TYPE_CHECKING:
    from PIL import Image

XMP_KEY = "worker_xmp"  # in a picture's `info`; under `xmp` there may be what a caller's own file holds
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# A read-only packet of XMP, and so without the padding in which editors change it; the id is that of every packet.
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


class Origin(StrEnum):
    """IPTC's terms for how a picture came about, as the last part of their URLs."""

    GENERATED = "trainedAlgorithmicMedia"
    EDITED = "compositeWithTrainedAlgorithmicMedia"
    GRADIENT = "algorithmicMedia"  # a stand-in from nothing: an algorithm drew it that was not trained
    FILTERED = "algorithmicallyEnhanced"  # a stand-in from the caller's picture


def origin_of(request: Drawing, is_stand_in: bool) -> Origin:
    """The origin of the request's pictures."""
    if isinstance(request, Edit):
        return Origin.FILTERED if is_stand_in else Origin.EDITED
    return Origin.GRADIENT if is_stand_in else Origin.GENERATED


def mark_pictures(pictures: "list[Image.Image]", origin: Origin, mark: Mark) -> None:
    """Have the files of these pictures say where they come from, in the way that the operator chose."""
    if mark is Mark.NONE:
        return
    for picture in pictures:
        picture.info[XMP_KEY] = XMP.format(source=SOURCE_TYPES + origin).encode()
