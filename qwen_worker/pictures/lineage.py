"""Which files an edit was made of and which it gave, by their digests, and how often a picture has been edited.

A picture that goes through several edits is a chain of files: each reply names the file before and the file after. The
number of the edit is in the file itself, in the mark (`marks.py`), as far as nobody took it out. Knows nothing of
pixels.
"""

import hashlib
from collections.abc import Iterable

from ..jobs.reply import Lineage
from .marks import edits_of


def lineage_of(files: Iterable[bytes]) -> Lineage:
    """The lineage of an edit of these files, whose result is not there yet; its round follows the latest of theirs."""
    digests, edits = list[str](), list[int]()
    for file in files:
        digests.append(digest_of(file))
        if (count := edits_of(file)) is not None:
            edits.append(count)
    lineage: Lineage = {"inputs": digests, "outputs": []}
    if edits:
        lineage["round"] = max(edits) + 1
    return lineage


def digest_of(file: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(file).hexdigest()
