"""What a visitor has drawn since the page was started, newest first. It is in memory only, and ends with the page."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from .form import Form
from .result import Result

MOST_ENTRIES = 24  # of one visitor
MOST_VISITORS = 50  # whoever has been away longest is forgotten


@dataclass(frozen=True)
class Entry:
    """A picture that was drawn. `form` is None where the job was handed in before the page was started."""

    job_id: str
    form: Form | None
    result: Result
    file: Path


class History:
    """Of all visitors, each under a name that only their browser knows. Several threads may use it at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.visitors: OrderedDict[str, dict[str, Entry]] = OrderedDict()

    def add(self, visitor: str, entry: Entry) -> None:
        with self.lock:
            entries = self.visitors.setdefault(visitor, {})
            self.visitors.move_to_end(visitor)
            entries[entry.job_id] = entry
            while len(entries) > MOST_ENTRIES:
                del entries[next(iter(entries))]
            while len(self.visitors) > MOST_VISITORS:
                self.visitors.popitem(last=False)

    def entries(self, visitor: str) -> list[Entry]:
        with self.lock:
            return list(reversed(self.visitors.get(visitor, {}).values()))
