"""A LoRA file on this worker's disk, from wherever its path says that it is: below a folder, in the hub's cache, on the
hub, behind a URL.

Jobs that want the same file at once fetch it once. What came from the hub or a URL is asked for again after
`REASK_SECONDS`, by its commit or its ETag, and fetched again where it has changed. Knows nothing of what is in it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ..checkpoints.checkpoint import candidates
from ..errors import InvalidInput, LoadError
from ..jobs.sources import STANDARD_NAME, SUFFIX, HubFile, hub_file, is_url
from ..network import hub
from ..network.fetch import Wanted, download, require_url, told
from ..network.side_threads import SideThreads, acquire
from .file import START_BYTES, TensorFile, require_start
from .store import Incoming, Known, LoraStore, Unwritable

MAX_FETCHES = 4
REASK_SECONDS = 300
REMEMBERED = 256  # names of which is known when they were last asked for
CODE = "lora_fetch_failed"
Found = tuple[Path, str | None]  # a file, and its hash where it is one of the store's, which never change


class LoraFetcher:
    """For any thread. `hub_roots`: folders where files of the hub may already lie."""

    def __init__(self, store: LoraStore, hub_roots: Sequence[Path], seconds: float):
        self.store, self.hub_roots, self.seconds = store, hub_roots, seconds
        self.threads = SideThreads(MAX_FETCHES)
        self.guard, self.locks = threading.Lock(), {}
        self.asked: dict[str, tuple[float, Known]] = {}  # by name: when it was last asked for, and what it led to

    def find(self, text: str, wanted: Wanted, roots: Sequence[Path], cancelled: threading.Event | None = None) -> Found:
        """The file that a LoRA's path names; `roots`: where it may lie on this disk.

        Raises `invalid_input` or `lora_fetch_failed`, or `Cancelled` within a moment once `cancelled` is set.
        """
        if file := below(roots, text):
            return local(file, wanted)
        if is_url(text):
            require_url(text, wanted)
            return self.fetched(text, lambda: self.from_url(text, wanted), wanted, cancelled)
        named = hub_file(text)
        if named is None:
            where = "in the endpoint's folders of LoRAs" if roots else "on this worker"
            raise InvalidInput(f"{wanted.label} names no file {where}")
        if file := in_cache(named, (*self.hub_roots, hub.cache_folder())):
            return local(file, wanted)
        return self.fetched(text, lambda: self.from_hub(text, named, wanted), wanted, cancelled)

    def fetched(
        self, name: str, fetch: Callable[[], Known], wanted: Wanted, cancelled: threading.Event | None
    ) -> Found:
        try:
            with told(wanted, self.seconds, self.threads):
                known = self.once(name, fetch, cancelled)
        except Unwritable:
            raise wanted.failed("has no room on the worker's disk") from None
        file, _ = local(self.store.use(name, known), wanted)  # the endpoint's own may be larger than a job's
        return file, known.sha256

    def once(self, name: str, fetch: Callable[[], Known], cancelled: threading.Event | None) -> Known:
        """What `fetch` brings, on a side thread; one at a time for each name, whose followers find it there.

        Who follows waits here: on a thread of its own it would keep another name from being fetched.
        """

        def work() -> Known:
            known = fetch()
            self.asked[name] = time.monotonic(), known
            return known

        ends, lock = time.monotonic() + self.seconds, self.lock_of(name)
        acquire(lock, ends, cancelled)
        with ExitStack() as turn:
            turn.callback(lock.release)
            if known := self.fresh(name):
                return known
            release = turn.pop_all().close  # by the fetch's own end, also where it is left behind
        return self.threads.within(ends - time.monotonic(), work, cancelled, after=release)

    def fresh(self, name: str) -> Known | None:
        """What the name led to when it was last asked for, if that is not long ago and still here."""
        when, known = self.asked.get(name, (0.0, None))
        return known if known and time.monotonic() - when < REASK_SECONDS and self.store.has(known.sha256) else None

    def lock_of(self, name: str) -> threading.Lock:
        with self.guard:
            if len(self.locks) > REMEMBERED:
                self.locks = {one: lock for one, lock in self.locks.items() if lock.locked()}
                self.asked = {one: known for one, known in self.asked.items() if one in self.locks}
            return self.locks.setdefault(name, threading.Lock())

    def from_url(self, url: str, wanted: Wanted) -> Known:
        known = self.store.known(url)
        headers = {"If-None-Match": known.validator} if known and known.validator else {}
        ends = time.monotonic() + self.seconds
        with self.store.incoming() as incoming:
            checked = Checked(incoming, wanted.label)
            answer = download(url, wanted, ends, checked, headers)
            if answer is None:
                return known
            checked.end()
            incoming.stream.flush()
            TensorFile(Path(incoming.stream.name), wanted.label)  # one that was cut short is not kept, nor its ETag
        return Known(incoming.sha256, answer.get("ETag", ""))

    def from_hub(self, name: str, named: HubFile, wanted: Wanted) -> Known:
        """By the listing's sizes before anything is fetched; what it led to last where the hub cannot be reached."""
        try:
            commit, files = hub.listing(named.hub_id, named.revision)
            file = chosen(named, {one.name: one for one in files}, wanted)
            if file.size > wanted.max_bytes:
                raise wanted.too_large(f"{file.size / 1e6:.1f} MB")
            if file.sha256 and self.store.has(file.sha256):
                return Known(file.sha256, commit)
            with self.store.scratch() as folder:
                path = hub.download_file(named.hub_id, file.name, commit, folder)
                with path.open("rb") as stream:
                    require_start(stream.read(START_BYTES), wanted.label)
                return Known(self.store.adopt(path), commit)
        except LoadError as error:
            if error.passing and (known := self.store.known(name)):
                return known
            raise wanted.failed(f"cannot be had: {error.reason}") from None


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


def local(file: Path, wanted: Wanted) -> Found:
    try:
        size = file.stat().st_size
    except OSError:  # it has just gone
        raise wanted.failed("cannot be read on the worker's disk") from None
    if size > wanted.max_bytes:
        raise wanted.too_large(f"{size / 1e6:.1f} MB")
    return file, None


def in_cache(named: HubFile, roots: Iterable[Path]) -> Path | None:
    """The hub's file in the folders where such may lie, in order."""
    for root in roots:
        for folder, _ in candidates(root, named.hub_id, named.revision):
            if folder.is_dir():
                name = named.file or only_lora(one.name for one in folder.iterdir())
                if name and (folder / name).is_file():
                    return folder / name
    return None


def chosen(named: HubFile, files: dict[str, hub.Listed], wanted: Wanted) -> hub.Listed:
    """The file that is meant of a repository's. Raises `InvalidInput` where that is not clear."""
    if named.file:
        if named.file not in files:
            raise InvalidInput(f"{wanted.label} names {named.file}, which {named.hub_id} does not hold")
        return files[named.file]
    name = only_lora(files)
    if name is None:
        held = [one for one in files if one.endswith(".safetensors")]
        which = ": " + ", ".join(held[:5]) if held else ""
        raise InvalidInput(f"{wanted.label} must name a file of {named.hub_id}, which holds {len(held)}{which}")
    return files[name]


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
