"""A LoRA file on this worker's disk, from wherever its path leads: below a folder, in the cache of models, on the hub,
behind a URL.

Jobs that want the same file at once fetch it once. After `REASK_SECONDS` the hub is asked again for the file's commit,
and a URL by the file's ETag; a file that has changed is fetched again. Knows nothing of a file's content but its start.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ..errors import InvalidInput, LoadError
from ..jobs.sources import PEFT_NAME, HubFile, hub_file, is_url
from ..network import hub
from ..network.fetch import FetchTarget, HttpStatusError, download, explain_waits, require_url
from ..network.side_threads import SideThreads, acquire_lock
from ..whole_file import write_whole
from .file import CONFIG_BYTES
from .hub_cache import HubCache
from .notes import Fetched, Notes
from .places import LocalFile, choose_config, choose_file, find_below, find_in_caches, local_file, require_size
from .store import Incoming, LoraStore, Unwritable, writable
from .strength import CONFIG_NAME
from .tensor_file import START_BYTES, TensorFile, require_start

MAX_FETCHES = 4
REASK_SECONDS = 300
MAX_ASKED = 256  # names of which the worker remembers when they were last asked for
FETCH_FAILED = "lora_fetch_failed"
HUB_CACHE = "hub"  # below the folder of fetched LoRAs
NO_SUCH_FILE = (400, 401, 403, 404, 410)  # statuses, also of signed URLs: their signatures are for one path
CONFIG_SUFFIX = ".config.json"  # of configurations from URLs, among the notes: the oldest of these go with them


class LoraFetcher:
    """For any thread.

    `folder`: of fetched files; `max_bytes`: of those from URLs, and as much of those from the hub; `hub_roots`: folders
    where files of the hub may lie already; `seconds`: for one fetch.
    """

    def __init__(self, folder: Path, max_bytes: int, hub_roots: Sequence[Path], seconds: float):
        self.folder, self.hub_roots, self.seconds = folder, hub_roots, seconds
        self.store, self.hub_cache = LoraStore(folder, max_bytes), HubCache(folder / HUB_CACHE, max_bytes)
        self.notes = Notes(folder)
        self.threads = SideThreads(MAX_FETCHES)
        self.locks_guard = threading.Lock()
        self.locks: dict[str, threading.Lock] = {}  # by name, held while it is fetched
        self.asked: dict[str, tuple[float, Fetched]] = {}  # by name: when it was last asked for, and its file

    def find(
        self, text: str, wanted: FetchTarget, roots: Sequence[Path], cancelled: threading.Event | None = None
    ) -> LocalFile:
        """The file that a LoRA's path names; `roots`: the folders of this disk that it may name a file of.

        Raises `invalid_input` or `lora_fetch_failed`, or `Cancelled` within a moment once `cancelled` is set.
        """
        if found := find_below(roots, text):
            return local_file(found[0], wanted, root=found[1])
        if is_url(text):
            require_url(text, wanted)
            return self.fetch(text, lambda: self.fetch_url(text, wanted), wanted, cancelled)
        source = hub_file(text)
        if source is None:
            where = "in the endpoint's folders of LoRAs" if roots else "on this worker"
            raise InvalidInput(f"{wanted.label} names no file {where}")
        if file := find_in_caches(source, (*self.hub_roots, hub.hub_cache_folder())):
            return local_file(file, wanted)
        name = source.hub_id.lower() + text.removeprefix(source.hub_id)  # the hub takes ids in any case
        return self.fetch(name, lambda: self.fetch_from_hub(name, source, wanted), wanted, cancelled)

    def fetch(
        self, name: str, fetch: Callable[[], Fetched], wanted: FetchTarget, cancelled: threading.Event | None
    ) -> LocalFile:
        """The file that the name leads to now; it is the last that an eviction would delete.

        Raises what `find` raises.
        """
        try:
            with explain_waits(wanted, self.seconds, self.threads):
                fetched = self.fetch_once(name, fetch, cancelled)
        except Unwritable:
            raise wanted.fetch_error("has no room on the worker's disk") from None
        path = self.folder / fetched.file
        config = self.folder / fetched.config if fetched.config else None
        for file in filter(None, (path, config)):
            with contextlib.suppress(OSError):  # another worker's eviction, or a disk that may only be read
                os.utime(file)
        # Checked again, because the endpoint's own LoRA may be larger than a job's, and behind the same name.
        require_size(path, wanted)
        return LocalFile(path, fetched.key, config, tuple(filter(None, [fetched.warning])))

    def fetch_once(self, name: str, fetch: Callable[[], Fetched], cancelled: threading.Event | None) -> Fetched:
        """What `fetch` brings, called on a side thread by the first of the jobs that want the name at once.

        The others wait in their own threads for its result: on side threads they would keep other names from being
        fetched. Raises `Late`, `Busy`, `Cancelled`, or what `fetch` raises.
        """

        def work() -> Fetched:
            fetched = fetch()
            with contextlib.suppress(OSError):
                if self.notes.read(name) != fetched:
                    self.notes.write(name, fetched)
            self.asked[name] = time.monotonic(), fetched
            return fetched

        ends, lock = time.monotonic() + self.seconds, self.name_lock(name)
        acquire_lock(lock, ends, cancelled)
        with ExitStack() as stack:
            stack.callback(lock.release)
            if fetched := self.recent_answer(name):
                return fetched
            release = stack.pop_all().close  # from here on the end of the fetch releases, also of one that is left
        return self.threads.run_within(ends - time.monotonic(), work, cancelled, after=release)

    def recent_answer(self, name: str) -> Fetched | None:
        """What the name led to when it was last asked for, if that is not long ago and the file still here."""
        asked_at, fetched = self.asked.get(name, (0.0, None))
        is_recent = time.monotonic() - asked_at < REASK_SECONDS
        return fetched if fetched and is_recent and fetched.is_in(self.folder) else None

    def name_lock(self, name: str) -> threading.Lock:
        with self.locks_guard:
            if len(self.locks) > MAX_ASKED:
                self.locks = {name: lock for name, lock in self.locks.items() if lock.locked()}
                self.asked = {name: answer for name, answer in self.asked.items() if name in self.locks}
            return self.locks.setdefault(name, threading.Lock())

    def fetch_url(self, url: str, wanted: FetchTarget) -> Fetched:
        """What lies behind the URL now, in the store. Raises `JobError` or `Unwritable`."""
        before = self.notes.read(url)
        headers = {"If-None-Match": before.etag} if before and before.etag else {}
        ends = time.monotonic() + self.seconds
        with self.store.incoming() as incoming:
            check = StartCheck(incoming, wanted.label)
            answer = download(url, wanted, ends, check, headers)
            if answer is not None or not before:
                check.end()
                incoming.stream.flush()
                TensorFile(Path(incoming.stream.name), wanted.label)  # one cut short is not kept, nor its ETag
        config = self.fetch_config(url, wanted, ends)
        _, warning = choose_config(file_name(url), [CONFIG_NAME] * bool(config))
        if answer is None and before:
            return replace(before, config=config, warning=warning)
        etag = answer.get("ETag", "") if answer else ""
        return Fetched(incoming.file, incoming.sha256, config, warning, etag)

    def fetch_config(self, url: str, wanted: FetchTarget, ends: float) -> str:
        """The name of peft's configuration from beside a URL that names peft's file; empty where there is none.

        Raises `JobError` for one that is too large or may come at another time, and `Unwritable`.
        """
        if file_name(url) != PEFT_NAME:
            return ""
        parts = urlsplit(url)
        path = parts.path.removesuffix(PEFT_NAME) + CONFIG_NAME
        text, config_url = bytearray(), urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        target = replace(wanted, label=f"{wanted.label}'s {CONFIG_NAME}", max_bytes=CONFIG_BYTES)
        try:
            download(config_url, target, ends, text.extend)
        except HttpStatusError as error:
            if error.status in NO_SUCH_FILE:
                return ""
            raise  # the LoRA would be drawn at another strength than at the next try
        if not text.lstrip().startswith(b"{"):  # some hosts answer to any path, with a page
            return ""
        name = f"{hashlib.sha256(text).hexdigest()}{CONFIG_SUFFIX}"
        with writable():
            write_whole(self.folder / name, bytes(text))
        return name

    def fetch_from_hub(self, name: str, source: HubFile, wanted: FetchTarget) -> Fetched:
        """What the hub has now, in its library's cache; if it cannot be reached, what the name led to last.

        The hub's listing gives the size, so that nothing too large is fetched. Raises `JobError` or `Unwritable`.
        """
        try:
            commit, sizes = hub.listing(source.hub_id, source.revision)
            file = choose_file(source, sizes, wanted)
            if sizes[file] > wanted.max_bytes:
                raise wanted.size_error(f"{sizes[file] / 1e6:.1f} MB")
            config, warning = choose_config(file, sizes)
            if config and sizes[config] > CONFIG_BYTES:
                words = f"{wanted.label}'s {CONFIG_NAME} must be at most {CONFIG_BYTES / 1e6:g} MB"
                raise InvalidInput(f"{words}, not {sizes[config] / 1e6:.1f} MB")
            path = self.hub_cache.fetch(source.hub_id, file, commit, wanted.label)
            config_path = self.hub_cache.fetch_file(source.hub_id, config, commit)[0] if config else None
        except LoadError as error:
            if error.transient and (before := self.notes.read(name)):
                return before
            raise wanted.fetch_error(f"cannot be had: {error.reason}") from None
        # The path is a link to a file that the library names by the hub's hash of it.
        key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        config_name = str(config_path.relative_to(self.folder)) if config_path else ""
        return Fetched(str(path.relative_to(self.folder)), key, config_name, warning)


class StartCheck:
    """Passes a file's bytes on, and raises `InvalidInput` at the ninth byte of a file that is no safetensors file."""

    def __init__(self, receive: Incoming, label: str):
        self.receive, self.label, self.start = receive, label, b""

    def __call__(self, data: bytes) -> None:
        if len(self.start) < START_BYTES:
            self.start += data[: START_BYTES - len(self.start)]
            if len(self.start) == START_BYTES:
                require_start(self.start, self.label)
        self.receive(data)

    def end(self) -> None:
        """Call it when all bytes have come: a shorter file is none either."""
        require_start(self.start, self.label)


def file_name(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]
