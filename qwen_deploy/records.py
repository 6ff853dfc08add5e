"""Saved configurations of endpoints, on the operator's machine: what a rollback puts back.

Readable by the operator alone, since an endpoint's environment may hold secrets. Knows nothing of HTTP.
"""

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .errors import DeployError

KEY_MARK = "{{the RUNPOD_API_KEY of whoever rolls back}}"  # an environment that holds the key itself is saved with this


def default_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qwen-deploy"


@dataclass(frozen=True)
class Record:
    path: Path
    saved_at: str
    endpoint: dict


class Records:
    """The records below `folder`; `key` is kept out of the files."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def save(self, endpoint: dict) -> Record:
        """Write the endpoint's whole configuration. Raises `DeployError` where that fails: then nothing was changed."""
        now = datetime.now(UTC)
        path = self.endpoint_folder(endpoint["id"]) / f"{now:%Y%m%dT%H%M%S.%f}Z.json"
        record = {"saved_at": now.isoformat(timespec="seconds"), "endpoint": endpoint}
        text = json.dumps(record, indent=1, ensure_ascii=False).replace(self.key, KEY_MARK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"{path.parent}: {error.strerror}"
            raise DeployError(
                f"The present configuration could not be saved ({reason}); nothing was changed."
            ) from None
        return Record(path, record["saved_at"], endpoint)

    def saved(self, endpoint_id: str) -> list[Record]:
        """The endpoint's records, newest first."""
        return [self.read(path) for path in sorted(self.endpoint_folder(endpoint_id).glob("*.json"), reverse=True)]

    def read(self, path: Path) -> Record:
        """Raises `DeployError` for a file that is not a record."""
        try:
            text = path.read_text().replace(KEY_MARK, self.key)
            record = json.loads(text)
            return Record(path, record["saved_at"], record["endpoint"] | {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{path} is not a saved configuration: {type(error).__name__}.") from None

    def endpoint_folder(self, endpoint_id: str) -> Path:
        if not re.fullmatch(r"[\w-]+", endpoint_id):
            raise DeployError(f"An endpoint's id is letters and digits, not {endpoint_id!r}.")
        return self.folder / endpoint_id

    def add_timing(self, endpoint_id: str, timing: dict) -> None:
        """Keep what a job of this endpoint took, for `cost`; the newest hundred are kept."""
        path = self.endpoint_folder(endpoint_id) / "timings.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = path.read_text().splitlines()[-99:] if path.is_file() else []
        path.write_text("\n".join([*lines, json.dumps(timing)]) + "\n")

    def timings(self, endpoint_id: str) -> list[dict]:
        path = self.endpoint_folder(endpoint_id) / "timings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
