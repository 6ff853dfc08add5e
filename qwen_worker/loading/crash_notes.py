"""Notes for the next start about what CUDA failed at or computed wrong, one file for each kind of machine.

A fresh worker that met the same error would load for minutes, fail and be replaced again, and all of it is paid for.
The note names what of the worker's own was at work then; the next start leaves that out. It lies beside what torch has
compiled: on the volume if there is one, else on the container's disk, and is lost with that. A note that cannot be
read or written is no failure. Knows nothing of what the names mean.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, cast

from ..errors import CudaSpoiledError
from ..log import log_line
from ..whole_file import write_whole

SUFFIX = ".crash.json"
MAX_BYTES = 100_000


class Note(TypedDict, total=False):
    """`reasons`: by what was at work, the error. `unexplained`: an error with nothing of the worker's own at work."""

    reasons: dict[str, str]
    unexplained: str


class CrashNotes:
    """`kind`: names the card and the versions, asked when the note is first needed. For the inference thread."""

    def __init__(self, folder: Path, kind: Callable[[], str]):
        self.folder, self.kind = folder, kind
        self.note: Note | None = None

    @property
    def file(self) -> Path:
        return self.folder / f"{self.kind()}{SUFFIX}"

    def read(self) -> Note:
        """What earlier starts have met on this kind of machine; the file is read once.

        Its kind is asked for only where there is any note: that imports torch, and plans are made without.
        """
        if self.note is None:
            self.note = read_note(self.file) if any(self.folder.glob(f"*{SUFFIX}")) else Note()
        return self.note

    def blame(self, reason: str, at_work: Sequence[str]) -> CudaSpoiledError:
        """The error to raise for a context that is spoiled, once the note for the next start is written.

        It asks for a fresh worker only where that would do anything otherwise than this one, or where nothing
        explains the error and it is the first of its kind.
        """
        note = self.read()
        reasons, is_news = dict(note.get("reasons", {})), bool(at_work) or "unexplained" not in note
        reasons |= dict.fromkeys(at_work, reason)
        self.write(Note(reasons=reasons) if at_work else Note(reasons=reasons, unexplained=reason))
        names = ", ".join(at_work)
        log_line(None, "ERROR", f"CUDA is spoiled: {reason}. The next start leaves out: {names or 'nothing'}")
        return CudaSpoiledError(reason, is_news)

    def remember(self, name: str, reason: str) -> None:
        """Have the next start leave out what has computed wrong numbers here."""
        note = self.read()
        self.write(Note(**{**note, "reasons": {**note.get("reasons", {}), name: reason}}))

    def clear_unexplained(self) -> None:
        """A picture was drawn: an error that nothing explained was that one card's, or has passed."""
        if self.note and "unexplained" in self.note:
            self.write(Note(reasons=self.note.get("reasons", {})))

    def write(self, note: Note) -> None:
        """Replace the file in one move."""
        self.note = note
        try:
            write_whole(self.file, json.dumps(note).encode())
        except OSError as error:
            log_line(None, "WARN", f"the next start will not know of this: {self.file.name} cannot be written: {error}")


def read_note(file: Path) -> Note:
    """The note in the file; an empty one where there is none, or it is damaged."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(file.read_text())
        reasons = content.get("reasons", {}) if isinstance(content, dict) else None
        if not isinstance(reasons, dict) or not all(isinstance(text, str) for pair in reasons.items() for text in pair):
            raise ValueError("it is no note")
    except FileNotFoundError:
        return Note()
    except (OSError, ValueError) as error:
        log_line(None, "WARN", f"{file.name} is ignored: {error}")
        return Note()
    return cast("Note", content)
