"""A LoRA file on this worker's disk, from wherever its path says that it is: below a folder, in the hub's cache, on the
hub, behind a URL.

Jobs that want the same file at once fetch it once. What came from the hub or a URL is asked for again after
`REASK_SECONDS`, by its commit or its ETag, and fetched again where it has changed. Knows nothing of what is in it.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.checkpoint import candidates
from ..errors import InvalidInput, LoadError
from ..jobs.sources import STANDARD_NAME, SUFFIX, HubFile, hub_file, is_url
from ..network import hub
from ..network.fetch import Wanted, download, require_url, told
from ..network.side_threads import SideThreads, acquire
from .file import START_BYTES, TensorFile, require_start
from .hub_cache import HubCache
from .notes import Fetched, Notes
from .store import Incoming, LoraStore, Unwritable

MAX_FETCHES = 4
REASK_SECONDS = 300
REMEMBERED = 256  # names of which is known when they were last asked for
CODE = "lora_fetch_failed"
HUB_CACHE = "hub"  # below the folder of fetched LoRAs


class LocalFile(NamedTuple):
    """A file on this disk. `key`: equal for equal contents only, of a file that was fetched: nobody writes to those."""

    path: Path
    key: str | None = None


class LoraFetcher:
    """For any thread.

    `folder`: where fetched files are kept; `max_bytes`: of those from URLs, and of those from the hub; `hub_roots`:
    folders where files of the hub may already lie; `seconds`: for one fetch.
    """

    def __init__(self, folder: Path, max_bytes: int, hub_roots: Sequence[Path], seconds: float):
        self.folder, self.hub_roots, self.seconds = folder, hub_roots, seconds
        self.store, self.hub_cache = LoraStore(folder, max_bytes), HubCache(folder / HUB_CACHE, max_bytes)
        self.notes = Notes(folder)
        self.threads = SideThreads(MAX_FETCHES)
        self.guard = threading.Lock()
        self.locks: dict[str, threading.Lock] = {}  # by name: held while it is fetched
        self.asked: dict[str, tuple[float, Fetched]] = {}  # by name: when it was last asked for, and what it led to

    def find(
        self, text: str, wanted: Wanted, roots: Sequence[Path], cancelled: threading.Event | None = None
    ) -> LocalFile:
        """The file that a LoRA's path names; `roots`: where it may lie on this disk.

        Raises `invalid_input` or `lora_fetch_failed`, or `Cancelled` within a moment once `cancelled` is set.
        """
        if file := below(roots, text):
            return local(file, wanted)
        if is_url(text):
            require_url(text, wanted)
            return self.fetch(text, lambda: self.from_url(text, wanted), wanted, cancelled)
        named = hub_file(text)
        if named is None:
            where = "in the endpoint's folders of LoRAs" if roots else "on this worker"
            raise InvalidInput(f"{wanted.label} names no file {where}")
        if file := in_cache(named, (*self.hub_roots, hub.cache_folder())):
            return local(file, wanted)
        return self.fetch(text, lambda: self.from_hub(text, named, wanted), wanted, cancelled)

    def fetch(
        self, name: str, fetch: Callable[[], Fetched], wanted: Wanted, cancelled: threading.Event | None
    ) -> LocalFile:
        """What the name leads to now, which is no longer the longest unused of its kind."""
        try:
            with told(wanted, self.seconds, self.threads):
                fetched = self.once(name, fetch, cancelled)
        except Unwritable:
            raise wanted.failed("has no room on the worker's disk") from None
        path = self.folder / fetched.file
        with contextlib.suppress(OSError):  # another worker's eviction, or a disk that may only be read
            os.utime(path)
        return local(path, wanted, fetched.key)  # the endpoint's own may be larger than a job's

    def once(self, name: str, fetch: Callable[[], Fetched], cancelled: threading.Event | None) -> Fetched:
        """What `fetch` brings, on a side thread; one at a time for each name, whose followers find it there.

        Who follows waits here: on a thread of its own it would keep another name from being fetched.
        """

        def work() -> Fetched:
            fetched = fetch()
            with contextlib.suppress(OSError):
                if self.notes.read(name) != fetched:
                    self.notes.write(name, fetched)
            self.asked[name] = time.monotonic(), fetched
            return fetched

        ends, lock = time.monotonic() + self.seconds, self.lock_of(name)
        acquire(lock, ends, cancelled)
        with ExitStack() as turn:
            turn.callback(lock.release)
            if fetched := self.fresh(name):
                return fetched
            release = turn.pop_all().close  # by the fetch's own end, also where it is left behind
        return self.threads.within(ends - time.monotonic(), work, cancelled, after=release)

    def fresh(self, name: str) -> Fetched | None:
        """What the name led to when it was last asked for, if that is not long ago and still here."""
        when, fetched = self.asked.get(name, (0.0, None))
        is_fresh = fetched and time.monotonic() - when < REASK_SECONDS and (self.folder / fetched.file).is_file()
        return fetched if is_fresh else None

    def lock_of(self, name: str) -> threading.Lock:
        with self.guard:
            if len(self.locks) > REMEMBERED:
                self.locks = {one: lock for one, lock in self.locks.items() if lock.locked()}
                self.asked = {one: fetched for one, fetched in self.asked.items() if one in self.locks}
            return self.locks.setdefault(name, threading.Lock())

    def from_url(self, url: str, wanted: Wanted) -> Fetched:
        before = self.notes.read(url)
        headers = {"If-None-Match": before.etag} if before and before.etag else {}
        ends = time.monotonic() + self.seconds
        with self.store.incoming() as incoming:
            checked = Checked(incoming, wanted.label)
            answer = download(url, wanted, ends, checked, headers)
            if answer is None and before:
                return before
            checked.end()
            incoming.stream.flush()
            TensorFile(Path(incoming.stream.name), wanted.label)  # one that was cut short is not kept, nor its ETag
        return Fetched(incoming.file, incoming.sha256, answer.get("ETag", "") if answer else "")

    def from_hub(self, name: str, named: HubFile, wanted: Wanted) -> Fetched:
        """By the listing's sizes before anything is fetched; what it led to last where the hub cannot be reached."""
        try:
            commit, sizes = hub.listing(named.hub_id, named.revision)
            file = chosen(named, sizes, wanted)
            if sizes[file] > wanted.max_bytes:
                raise wanted.too_large(f"{sizes[file] / 1e6:.1f} MB")
            path = self.hub_cache.fetch(named.hub_id, file, commit, wanted.label)
        except LoadError as error:
            if error.passing and (before := self.notes.read(name)):
                return before
            raise wanted.failed(f"cannot be had: {error.reason}") from None
        # The library's file is a link to one that is named by the hub's hash of it.
        key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        return Fetched(str(path.relative_to(self.folder)), key)


class Checked:
    """Passes a file's bytes on, and refuses it at the ninth where it is no safetensors file."""

    def __init__(self, receive: Incoming, label: str):
        self.receive, self.label, self.start = receive, label, b""

    def __call__(self, data: bytes) -> None:
        if len(self.start) < START_BYTES:
            self.start += data[: START_BYTES - len(self.start)]
            if len(self.start) == START_BYTES:
                require_start(self.start, self.label)
        self.receive(data)

    def end(self) -> None:
        require_start(self.start, self.label)


def local(path: Path, wanted: Wanted, key: str | None = None) -> LocalFile:
    """Raises `invalid_input` for a file that is too large, `lora_fetch_failed` for one that has just gone."""
    try:
        size = path.stat().st_size
    except OSError:
        raise wanted.failed("cannot be read on the worker's disk") from None
    if size > wanted.max_bytes:
        raise wanted.too_large(f"{size / 1e6:.1f} MB")
    return LocalFile(path, key)


def in_cache(named: HubFile, roots: Iterable[Path]) -> Path | None:
    """The hub's file in the folders where such may lie, in order."""
    for root in roots:
        for folder, _ in candidates(root, named.hub_id, named.revision):
            if folder.is_dir():
                name = named.file or only_lora(one.name for one in folder.iterdir())
                if name and (folder / name).is_file():
                    return folder / name
    return None


def chosen(named: HubFile, sizes: Mapping[str, int], wanted: Wanted) -> str:
    """The file that is meant of a repository's. Raises `InvalidInput` where that is not clear."""
    if named.file:
        if named.file not in sizes:
            raise InvalidInput(f"{wanted.label} names {named.file}, which {named.hub_id} does not hold")
        return named.file
    name = only_lora(sizes)
    if name is None:
        held = [one for one in sizes if one.endswith(".safetensors")]
        which = ": " + ", ".join(held[:5]) if held else ""
        raise InvalidInput(f"{wanted.label} must name a file of {named.hub_id}, which holds {len(held)}{which}")
    return name


def below(roots: Iterable[Path], text: str) -> Path | None:
    """The file of that name below one of the roots, also by its absolute path; links must stay below too."""
    for root in roots:
        try:
            file = (root / text).resolve()
            if file.is_relative_to(root.resolve()) and file.is_file():
                return file
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            continue
    return None


def only_lora(names: Iterable[str]) -> str | None:
    """Of a repository's or a folder's files the one that is meant where none is named."""
    loras = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    return loras[0] if len(loras) == 1 else STANDARD_NAME if STANDARD_NAME in loras else None
