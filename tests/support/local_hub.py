"""A model hub on loopback: as much of the hub's HTTP API as its client asks for, over plain folders.

Large files are LFS objects, with their SHA-256 in the listing and their bytes behind a redirect to another host, as on
the hub. Counts the bytes that leave, and can stall, break off or spoil them.
"""

import hashlib
import itertools
import json
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from ..conftest import respond

PIECE = 1 << 20  # bytes written at once


class LocalHub:
    """`repos`: folders by hub id, at the one commit of each. Give the object to `web` or `serve`."""

    def __init__(self, repos, gated=(), token=None):
        self.repos = {name: Path(folder) for name, folder in repos.items()}
        self.gated, self.token = set(gated), token
        self.status = 200  # of every answer
        self.paths = []  # as they were asked for
        self.sent = {}  # bytes by digest of the LFS object
        self.tokens_elsewhere = 0  # requests that took the token to another host
        self.spoiled = {}  # by file name: how many more times its bytes are wrong
        self.broken_off = {}  # by file name: bytes after which the connection ends, once
        self.knows_ranges = True
        self.looked_at = []  # names of the LFS objects of which only some bytes were sent
        self.pause = 0.0  # seconds between two pieces
        self.asked = itertools.count()

    def __call__(self, handler):
        path = urlsplit(handler.path).path
        self.paths.append(path)
        parts = path.strip("/").split("/")
        if self.status != 200:
            return respond(handler, b"{}", self.status)
        if parts[0] == "lfs":
            self.tokens_elsewhere += "Authorization" in handler.headers
            return self.send_object(handler, "/".join(parts[1:3]), "/".join(parts[3:]))
        hub_id = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if hub_id not in self.repos:
            return respond(handler, b"{}", 404, X_Error_Code="RepoNotFound")
        if hub_id in self.gated and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return respond(handler, b"{}", 403, X_Error_Code="GatedRepo")
        if parts[0] == "api":
            return answer(handler, self.tree(hub_id) if "tree" in parts else self.info(hub_id))
        return self.resolve(handler, hub_id, "/".join(parts[4:]))

    def commit(self, hub_id):
        return hashlib.sha1(json.dumps(self.tree(hub_id)).encode()).hexdigest()

    def files(self, hub_id):
        folder = self.repos[hub_id]
        return {str(one.relative_to(folder)): one for one in sorted(folder.rglob("*")) if one.is_file()}

    def tree(self, hub_id):
        found = []
        for name, file in self.files(hub_id).items():
            entry = {"type": "file", "path": name, "size": file.stat().st_size, "oid": git_hash(file)}
            if is_large(file):
                entry["lfs"] = {"oid": sha256(file), "size": entry["size"], "pointerSize": 135}
            found.append(entry)
        return found

    def info(self, hub_id):
        siblings = []
        for one in self.tree(hub_id):
            lfs = {"lfs": one["lfs"] | {"sha256": one["lfs"]["oid"]}} if "lfs" in one else {}
            siblings.append({"rfilename": one["path"], "size": one["size"], "blobId": one["oid"], **lfs})
        return {"id": hub_id, "sha": self.commit(hub_id), "siblings": siblings}

    def resolve(self, handler, hub_id, name):
        file = self.files(hub_id).get(name)
        if file is None:
            return respond(handler, b"{}", 404, X_Error_Code="EntryNotFound")
        facts = {"X_Repo_Commit": self.commit(hub_id)}
        if not is_large(file):
            return respond(handler, file.read_bytes(), ETag=f'"{git_hash(file)}"', **facts)
        size = str(file.stat().st_size)
        facts |= {"X_Linked_Size": size, "X_Linked_Etag": f'"{sha256(file)}"', "Accept_Ranges": "bytes"}
        place = f"http://localhost:{handler.server.server_port}/lfs/{hub_id}/{name}"
        return respond(handler, b"", 302, Location=place, **facts)

    def send_object(self, handler, hub_id, name):
        file = self.files(hub_id)[name]
        size, start = file.stat().st_size, 0
        end, is_part = size, False
        if (asked := handler.headers.get("Range")) and self.knows_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(size, int(last) + 1) if last else size
            is_part = bool(last)
        handler.send_response(206 if asked and self.knows_ranges else 200)
        handler.send_header("Content-Length", str(end - start))
        if asked and self.knows_ranges:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if is_part:  # it is neither counted nor spoiled, as a download is
            with file.open("rb") as stream:
                stream.seek(start)
                handler.wfile.write(stream.read(end - start))
            self.looked_at.append(name)
            return
        self.send_pieces(handler, file, start)

    def send_pieces(self, handler, file, start):
        end = self.broken_off.pop(file.name, None)
        wrong = self.spoiled.get(file.name, 0) > 0
        self.spoiled[file.name] = self.spoiled.get(file.name, 0) - 1
        with file.open("rb") as stream:
            stream.seek(start)
            while piece := stream.read(PIECE):
                if end is not None and stream.tell() > end:
                    handler.close_connection = True
                    return
                handler.wfile.write(bytes(len(piece)) if wrong else piece)
                digest = sha256(file)
                self.sent[digest] = self.sent.get(digest, 0) + len(piece)
                time.sleep(self.pause)


def is_large(file):
    return file.suffix == ".safetensors"


def sha256(file):
    facts = file.stat()
    return sha256_at(file, facts.st_size, facts.st_mtime_ns)


@cache
def sha256_at(file, _size, _changed):
    """Read once for as long as nobody writes to the file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_hash(file):
    """A small file's name in git; of a large one that of its pointer, which nobody checks."""
    data = sha256(file).encode() if is_large(file) else file.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def answer(handler, body):
    respond(handler, json.dumps(body).encode(), Content_Type="application/json")
