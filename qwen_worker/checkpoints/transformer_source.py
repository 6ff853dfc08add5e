"""A transformer from elsewhere than its checkpoint: where a setting's text leads, and what is there by its header.

The text is a file or folder on this machine, ORG/NAME/FILE or ORG/NAME/FOLDER on the hub, or a URL. Of what is not here
yet the beginning alone is fetched: a sparse file of the whole size with nothing but the header says all that a plan is
made of. Knows nothing of the checkpoint that the transformer is put into.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import LoadError, hide_secrets
from ..jobs.sources import is_repository, is_url
from ..network import hub, large_files
from ..settings import hub_home
from . import gguf_file, single_file
from .files import HEADER_LIMIT, SUFFIX, explain_read_errors, is_folder, label_of, shards
from .remote import cached_bytes, download_files, size_of
from .search import hub_folders

RULE = (
    "a .safetensors or .gguf file on this worker, ORG/NAME/FILE of the hub, the folder of a transformer here or on the "
    "hub (ORG/NAME/transformer), or an http(s) URL of a file; @REVISION may follow the hub's NAME or the FILE"
)
HUB_PATH = re.compile(
    r"(?P<hub_id>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>\w[\w.-]*))?(/(?P<path>[^@]+?))?(@(?P<late_revision>\w[\w.-]*))?",
    re.ASCII,
)
HUB_URL = re.compile(r"/(?P<hub_id>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<path>.+)")
HUB_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
STARTS = (1 << 20, 4 << 20, 8 + HEADER_LIMIT)  # bytes of a file's beginning that are fetched, until the header is whole
FETCHED_FOLDER = "qwen-image-transformers"  # below HF_HOME: files from URLs
COMPONENT = "transformer"
CONFIG = "config.json"
FOLDER_FILES = (CONFIG, "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Place:
    """Where a setting leads. Of `local`, `hub_id` and `url` one is set."""

    label: str  # as a caller may see it
    local: Path | None = None
    hub_id: str = ""
    revision: str = ""
    path: str = ""  # in the repository; "" for its root
    url: str = ""

    @property
    def is_file(self) -> bool:
        return single_file.is_file_name(self.path) if self.hub_id else not (self.local and self.local.is_dir())


@dataclass(frozen=True)
class TransformerSource:
    """What is there. `readable`: the file or folder, or a sparse file with the header alone where it is not here yet.

    `path`: the file or folder once it is on this machine.
    """

    place: Place
    revision: str  # a commit, or a digest of the header
    size: int  # bytes of the weights
    readable: Path
    path: Path | None

    @property
    def label(self) -> str:
        return self.place.label

    @property
    def name(self) -> str:
        """The file's own name, on which messages go by."""
        return self.label.rpartition("/")[2]


def parse(text: str) -> Place:
    """Where the text leads. Raises `LoadError` for what leads nowhere."""
    if is_url(text):
        return parse_url(text)
    if is_folder(text) or os.path.isfile(text):
        local = Path(text).expanduser()
        if not local.exists():
            raise LoadError(f"{label_of(str(local))} is neither a file nor a folder on this worker")
        return Place("/".join(local.absolute().parts[1:][-2:]), local=local)
    match = HUB_PATH.fullmatch(text)
    parts = (match["path"] or "").split("/") if match else []
    if not match or not is_repository(match["hub_id"]) or any(part in (".", "..") for part in parts):
        raise LoadError(f"{hide_secrets(text)[:200]} names no transformer: what is taken is {RULE}")
    revision, path = match["revision"] or match["late_revision"] or "", match["path"] or ""
    return Place("/".join(filter(None, [match["hub_id"], path])), hub_id=match["hub_id"], revision=revision, path=path)


def parse_url(text: str) -> Place:
    """The file behind a URL; one of the hub's is a path of the hub, whose client has the token and the cache."""
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").lower()
    except ValueError:
        raise LoadError(f"{hide_secrets(text)[:200]} is not a valid URL") from None
    if host in HUB_HOSTS and (match := HUB_URL.fullmatch(unquote(parts.path))):
        revision = "" if match["revision"] == "main" else f"@{match['revision']}"
        return parse(f"{match['hub_id']}{revision}/{match['path']}")
    name = unquote(parts.path).rpartition("/")[2]
    return Place(f"{host}/{name or 'a file'}"[:200], url=text)


def locate(text: str, roots: Iterable[Path], scratch: Path) -> TransformerSource:
    """What the text leads to, from this machine, or from the hub's or another server's first bytes.

    `scratch`: a folder for sparse files. Raises `LoadError`.
    """
    place = parse(text)
    if place.local:
        return located_here(place, component_folder(place.local), "")
    if place.hub_id:
        if found := find_here(place, roots):
            return found
        return look_up(place, scratch)
    target = fetched_file(place)
    if target.is_file():
        return located_here(place, target, "")
    start, size = large_files.read_start(place.url, place.label, STARTS[0])
    file = sparse(lambda count: large_files.read_start(place.url, place.label, count)[0], start, size, scratch, place)
    return TransformerSource(place, header_digest(file, place.label), size, file, None)


def fetch(source: TransformerSource) -> TransformerSource:
    """The source with its file or folder on this machine. Raises `LoadError`."""
    place = source.place
    if source.path is not None:
        return source
    if place.hub_id and place.is_file:
        path = hub.download_file(place.hub_id, place.path, source.revision, hub.hub_cache_folder())
    elif place.hub_id:
        prefix = f"{place.path}/" if place.path else ""
        patterns = [f"{prefix}{name}" for name in FOLDER_FILES]
        path = download_files(place.hub_id, source.revision, patterns, [f"{prefix}*/*"]) / place.path
    else:
        path = fetched_file(place)
        large_files.download(place.url, place.label, path, source.size)
    return replace(source, path=path, readable=path)


def fetched_bytes(source: TransformerSource) -> int:
    """What of the source is on this machine, also of a download that is going on. For any thread."""
    if source.path is not None:
        return source.size
    if source.place.hub_id:
        return cached_bytes(source.place.hub_id)
    target = fetched_file(source.place)
    return sum(size_of(file) for file in (target, target.with_name(f"{target.name}.part")))


def component_folder(local: Path) -> Path:
    """The folder of the transformer itself, where that of a whole checkpoint is named."""
    inner = local / COMPONENT
    return inner if not (local / CONFIG).is_file() and (inner / CONFIG).is_file() else local


def located_here(place: Place, path: Path, commit: str) -> TransformerSource:
    """A file or folder of this machine. Raises `LoadError` for a folder that lacks what it needs."""
    if not path.is_dir():
        with explain_read_errors(place.label):
            size = path.stat().st_size
        return TransformerSource(place, commit or header_digest(path, place.label), size, path, path)
    if not (path / CONFIG).is_file():
        raise LoadError(f"{place.label} is a folder and holds no {CONFIG} of a transformer: name a file in it")
    files = shards(path.parent, path.name)
    digest = hashlib.sha256((path / CONFIG).read_bytes())
    for file in files:
        digest.update(header_digest(file, place.label).encode())
    size = sum(file.stat().st_size for file in files)
    return TransformerSource(place, commit or f"folder-{digest.hexdigest()[:12]}", size, path, path)


def find_here(place: Place, roots: Iterable[Path]) -> TransformerSource | None:
    """The hub's file or folder below the roots or in the hub's cache; None where it is not there, or not whole."""
    model = place.hub_id + (f"@{place.revision}" if place.revision else "")
    for folder, commit in hub_folders(model, roots):
        path = folder / place.path
        if place.is_file and path.is_file():
            return located_here(place, path, commit or "")
        if not place.is_file and (component_folder(path) / CONFIG).is_file():
            try:
                return located_here(place, component_folder(path), commit or "")
            except LoadError:
                continue  # a download cut short
    return None


def look_up(place: Place, scratch: Path) -> TransformerSource:
    """What the hub has there. Raises `LoadError`."""
    commit, sizes = hub.listing(place.hub_id, place.revision)
    if not place.is_file:
        return look_up_folder(place, commit, sizes)
    if place.path not in sizes:
        raise LoadError(f"{place.hub_id} is on the hub and holds no {place.path[:120]}{alternatives(sizes)}")
    start = hub.read_start(place.hub_id, place.path, commit, STARTS[0])
    size = sizes[place.path]
    file = sparse(lambda count: hub.read_start(place.hub_id, place.path, commit, count), start, size, scratch, place)
    return TransformerSource(place, commit, size, file, None)


def look_up_folder(place: Place, commit: str, sizes: Mapping[str, int]) -> TransformerSource:
    """The folder of a transformer on the hub, of which the config alone is fetched. Raises `LoadError`."""
    choices = [place.path] if place.path else ["", COMPONENT]
    for path in choices:
        prefix = f"{path}/" if path else ""
        if f"{prefix}{CONFIG}" in sizes:
            below = {name: size for name, size in sizes.items() if name.startswith(prefix)}
            weights = [name for name in below if name.endswith(SUFFIX) and "/" not in name.removeprefix(prefix)]
            config = hub.download_file(place.hub_id, f"{prefix}{CONFIG}", commit, hub.hub_cache_folder())
            size = sum(below[name] for name in weights)
            return TransformerSource(replace(place, path=path), commit, size, config.parent, None)
    where = f" in {place.path}" if place.path else ""
    raise LoadError(
        f"{place.hub_id} is on the hub and holds no {CONFIG}{where}: name a file of it{alternatives(sizes)}"
    )


def alternatives(sizes: Iterable[str]) -> str:
    """The files of a repository that may be meant, in words."""
    names = sorted(name for name in sizes if single_file.is_file_name(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; it holds {', '.join(names[:3])}{more}" if names else ""


def sparse(read: Callable[[int], bytes], start: bytes, size: int, scratch: Path, place: Place) -> Path:
    """A file of the whole size that holds the beginning alone, as far as the header goes.

    `read(count)`: the first bytes; `start`: as many as `STARTS` begins with. Raises `LoadError` for what has no header.
    """
    file = scratch / hashlib.sha256(f"{place.label}@{place.revision}".encode()).hexdigest()[:16]
    label = place.label.rpartition("/")[2]
    for count in STARTS:
        start = start if count == STARTS[0] else read(count)
        file.write_bytes(start)
        os.truncate(file, size)
        if len(start) >= size or header_bytes(file, label, len(start)) <= len(start):
            break
    return file


def header_bytes(file: Path, label: str, have: int) -> int:
    """Where the header ends. More than `have`, the bytes of it that are there, where that does not show yet."""
    with file.open("rb") as stream:
        start = stream.read(8)
    if not start.startswith(gguf_file.MAGIC):
        return 8 + int.from_bytes(start, "little")
    try:
        return gguf_file.read_header(file, label).data_start
    except LoadError:
        return have + 1  # zeros in the place of the rest make no sense


def header_digest(file: Path, label: str) -> str:
    """The revision of a file that has no commit: a digest of its size and its beginning."""
    with explain_read_errors(label), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(str(size).encode() + stream.read(STARTS[0]))
    return f"file-{digest.hexdigest()[:12]}"


def fetched_file(place: Place) -> Path:
    """Where a file from a URL is kept: by its URL, without the query, in which signatures change."""
    address = urlsplit(place.url)
    key = hashlib.sha256(f"{address.netloc}{address.path}".encode()).hexdigest()[:16]
    return hub_home() / FETCHED_FOLDER / f"{key}-{place.label.rpartition('/')[2]}"
