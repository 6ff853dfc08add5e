"""What the names of fetched LoRAs led to when they were last asked for: a URL's file and ETag, the file of a hub path.

One small JSON file for each name, so that the next start asks whether a file has changed instead of fetching it again,
and uses what is there where a hub cannot be reached. Workers that share the disk share the notes. Knows nothing of how
files come or go.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..whole_file import write_whole
from .store import modified

MAX_NAMES = 1000


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched: `file` below the folder of fetched LoRAs, `key` equal for equal contents only.

    `config`: peft's configuration that belongs to it, below the same folder; empty where there is none. `warning`: why
    a configuration may be missing.
    """

    file: str
    key: str
    config: str
    warning: str = ""
    etag: str = ""  # of a URL's answer, by which the URL can be asked again

    def is_in(self, folder: Path) -> bool:
        return all((folder / file).is_file() for file in (self.file, self.config) if file)


class Notes:
    """For any thread. `folder`: that of fetched LoRAs, in which the notes lie too."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, name: str) -> Fetched | None:
        """What the name led to, if that file is still here."""
        try:
            note = Fetched(**json.loads(self.path(name).read_text()))
            return note if note.is_in(self.folder) else None
        except (OSError, ValueError, TypeError):
            return None

    def write(self, name: str, fetched: Fetched) -> None:
        """Raises `OSError` where the disk does not take it; the oldest notes beyond `MAX_NAMES` go."""
        write_whole(self.path(name), json.dumps(asdict(fetched)).encode())
        for note in sorted(self.folder.glob("*.json"), key=modified, reverse=True)[MAX_NAMES:]:
            note.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}.json"
