"""Saved configurations of endpoints, which a rollback puts back, and the seconds of jobs, for `cost`.

They are files on the operator's machine, readable by the operator alone: an endpoint's environment may hold secrets.
Knows nothing of HTTP.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from .endpoints import plain_name
from .errors import DeployError
from .runpod.schemas import Endpoint

KEY_MARK = "{{the RUNPOD_API_KEY of whoever rolls back}}"  # stands in a record for a key that the environment holds
TIMINGS_KEPT = 100  # of each endpoint


def default_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qwen-deploy"


@dataclass(frozen=True)
class Record:
    """`endpoint` is RunPod's whole answer for an endpoint, before a change."""

    path: Path
    saved_at: str
    endpoint: Endpoint


class Timing(TypedDict):
    """What a drawing job took. `seconds` are billed ones, less the load of a cold worker, which is `load` seconds."""

    task: str
    card: str | None
    seconds: float
    load: float
    pictures: int
    size: str | None
    steps: int | None
    gpus: NotRequired[int]  # that drew one picture, where there was more than one


class Records:
    """The records below `folder`; `key` is kept out of the files."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def save(self, endpoint: Endpoint) -> Record:
        """Write the endpoint's whole configuration. Raises `DeployError` where that fails: then nothing was changed."""
        now = datetime.now(UTC)
        saved_at = now.isoformat(timespec="seconds")
        path = self.endpoint_folder(endpoint["id"]) / f"{now:%Y%m%dT%H%M%S.%f}Z.json"
        fields = {"saved_at": saved_at, "endpoint": endpoint}
        text = json.dumps(fields, indent=1, ensure_ascii=False).replace(self.key, KEY_MARK)
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
        return Record(path, saved_at, endpoint)

    def saved(self, endpoint_id: str) -> list[Record]:
        """The endpoint's records, newest first."""
        return [self.read(path) for path in sorted(self.endpoint_folder(endpoint_id).glob("*.json"), reverse=True)]

    def read_named(self, endpoint_id: str, file: Path) -> Record:
        """By a path, or by its name alone as `rollback --list` shows it. Raises `DeployError` as `read` does."""
        own = self.endpoint_folder(endpoint_id) / file
        return self.read(own if file.name == str(file) and not file.exists() else file)

    def read(self, path: Path) -> Record:
        """Raises `DeployError` for a file that is not a record."""
        try:
            fields = json.loads(path.read_text().replace(KEY_MARK, self.key))
            return Record(path, fields["saved_at"], fields["endpoint"] | {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{path} is not a saved configuration: {type(error).__name__}.") from None

    def add_timing(self, endpoint_id: str, timing: Timing) -> None:
        """Keep it beside the newest others. The file is replaced whole, so that a second helper reads no half of it.

        Nothing is kept where the disk does not take it: a job that was done does not fail by that.
        """
        path = self.timings_file(endpoint_id)
        lines = [json.dumps(each) for each in [*self.timings(endpoint_id), timing][-TIMINGS_KEPT:]]
        draft = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text("\n".join(lines) + "\n")
            draft.replace(path)
        except OSError:
            with suppress(OSError):
                draft.unlink()

    def timings(self, endpoint_id: str) -> list[Timing]:
        """Oldest first, without lines that are none, as a full disk leaves them."""
        path, found = self.timings_file(endpoint_id), list[Timing]()
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            try:
                timing = json.loads(line)
            except ValueError:
                continue
            if isinstance(timing, dict) and Timing.__required_keys__ <= set(cast(Timing, timing)):
                found.append(cast(Timing, timing))
        return found

    def timings_file(self, endpoint_id: str) -> Path:
        return self.endpoint_folder(endpoint_id) / "timings.jsonl"

    def endpoint_folder(self, endpoint_id: str) -> Path:
        """Raises `DeployError` for an id that could lead out of the folder."""
        if not re.fullmatch(r"[\w-]+", endpoint_id):
            raise DeployError(f"An endpoint's id is letters and digits, not {endpoint_id!r}.")
        return self.folder / endpoint_id


def saved_records(folder: Path, endpoint_id: str | None, name: str | None) -> list[Record]:
    """The records of an endpoint by its id or name, or of all, newest first; a key that one held stays left out."""
    records = Records(folder, KEY_MARK)
    ids = [endpoint_id] if endpoint_id else [own.name for own in folder.glob("*") if own.is_dir()]
    saved = [record for own in ids for record in records.saved(own)]
    saved = [one for one in saved if name in (None, one.endpoint["name"], plain_name(one.endpoint))]
    return sorted(saved, key=lambda record: record.saved_at, reverse=True)
