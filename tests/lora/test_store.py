"""LoRA files here and from URLs: by content, bounded, whole after a kill, fetched once for all who ask at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save

from qwen_worker.errors import Cancelled, JobError
from qwen_worker.jobs.sources import is_source
from qwen_worker.lora import fetch as lora_fetch
from qwen_worker.lora.fetch import LoraFetcher
from qwen_worker.lora.notes import Fetched, Notes
from qwen_worker.lora.places import find_below
from qwen_worker.lora.store import ABANDONED_SECONDS, Incoming, LoraStore, Unwritable
from qwen_worker.network.fetch import FetchTarget

from ..conftest import ROOT, respond
from ..support.patience import wait_until
from .conftest import FILE, MB, OTHER, digest, find, refusal

MORE = save({"transformer_blocks.0.attn.to_v.lora_A.weight": torch.zeros(2, 8)})


# What a path names


@pytest.mark.parametrize(
    "text",
    ["Org/Name", "Org/Name/file.safetensors", "Org/Name@v1", "Org/Name@0123abc/sub/file.safetensors",
     "file.safetensors", "styles/file.safetensors", "/loras/file.safetensors", "https://example.com/x?token=1"],
)  # fmt: skip
def test_these_paths_can_name_a_lora(text):
    assert is_source(text)


@pytest.mark.parametrize(
    "text",
    ["", "name", "/loras/file.bin", "Org/Name/file.bin", "Org//x", "../x", "Org/Name/sub", "a\0.safetensors", "é/ñ",
     "a\n/b", "x" * 3000 + ".safetensors", "Org/Name@", "@/x",
     # what the hub, or a disk, has no name for
     "a--b/c", "a/b.git", "a/b..c", "a./b", "a/" + "x" * 100, "a/b@" + "x" * 300],
)  # fmt: skip
def test_these_cannot(text):
    assert not is_source(text)


def test_only_files_below_a_root_are_found(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.safetensors"
    (root / "sub").mkdir(parents=True)
    inside = root / "sub/a.safetensors"
    for file in (inside, outside):
        file.write_bytes(FILE)
    (root / "out.safetensors").symlink_to(outside)
    (root / "in.safetensors").symlink_to(inside)
    os.mkfifo(root / "pipe.safetensors")
    roots = [tmp_path / "missing", root]
    for text in ("sub/a.safetensors", str(inside), "in.safetensors"):
        assert find_below(roots, text) == (inside, root)
    for text in ("../outside.safetensors", str(outside), "out.safetensors", "sub/../../outside.safetensors", "sub",
                 "pipe.safetensors", "a" * 4000, "/dev/zero", "none.safetensors"):  # fmt: skip
        assert find_below(roots, text) is None, text


def test_a_file_here_is_used_where_it_lies(fetcher, tmp_path):
    file = tmp_path / "root/a.safetensors"
    file.parent.mkdir()
    file.write_bytes(FILE)
    for text in ("a.safetensors", str(file)):
        assert find(fetcher, text, roots=[file.parent]) == (FILE, None)
    assert "must be at most 0 MB" in refusal(fetcher, "a.safetensors", roots=[file.parent], max_bytes=10)
    missing = refusal(fetcher, "b.safetensors", roots=[file.parent])
    assert missing == refusal(fetcher, "/etc/b.safetensors", roots=[file.parent])
    assert missing == "invalid_input: loras[0] names no file in the endpoint's folders of LoRAs"


def test_a_name_longer_than_any_file_s_is_refused(fetcher, tmp_path):
    (tmp_path / "models/a/b").mkdir(parents=True)
    for text in ("a/b/" + "x" * 300 + ".safetensors", "a--b/c/d.safetensors"):
        assert refusal(fetcher, text).startswith("invalid_input: loras[0] names no file")


# From a URL


class Web:
    """Serves one body, by its ETag where it has one."""

    def __init__(self, body=FILE, etag='"1"', name="ETag"):
        self.body, self.etag, self.name, self.asked, self.sent = body, etag, name, [], 0
        self.pause = 0.0

    def __call__(self, handler):
        self.asked.append(handler.headers.get("If-None-Match"))
        time.sleep(self.pause)
        facts = {self.name: self.etag} if self.etag else {}
        if self.etag and self.asked[-1] == self.etag:
            return respond(handler, b"", 304, **facts)
        self.sent += len(self.body)
        respond(handler, self.body, **facts)


def test_what_came_is_kept_by_content_and_asked_for_again_by_its_etag(fetcher, fetching, store, web, monkeypatch):
    served = Web()
    address = web(served)
    assert find(fetcher, address + "/a?token=1") == (FILE, digest(FILE))
    assert find(fetcher, address + "/a?token=1")[0] == FILE and len(served.asked) == 1  # just asked
    assert find(fetcher, address + "/a?token=2")[0] == FILE and served.asked == [None, None]  # another name for it
    assert [file.name for file in store.folder.glob("*.safetensors")] == [f"{digest(FILE)}.safetensors"]
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    assert (
        find(fetcher, address + "/a?token=1")[0] == FILE
        and served.asked[2:] == ['"1"']
        and served.sent == 2 * len(FILE)
    )
    served.body, served.etag = OTHER, '"2"'
    assert find(fetcher, address + "/a?token=1") == (OTHER, digest(OTHER)) and served.asked[3:] == ['"1"']
    assert find(fetching(), address + "/a?token=1")[0] == OTHER and served.asked[4:] == ['"2"']
    assert not list(store.folder.glob("*.part"))


def test_a_header_s_name_is_one_in_any_case(fetcher, web, monkeypatch):
    served = Web(name="etag")
    address = web(served)
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    assert find(fetcher, address)[0] == FILE == find(fetcher, address)[0]
    assert served.asked == [None, '"1"']


def test_what_was_cut_short_on_its_way_is_not_kept(fetcher, store, web):
    served = Web(FILE[:-4])
    address = web(served)
    assert "is corrupt" in refusal(fetcher, address)
    served.body = FILE
    assert find(fetcher, address) == (FILE, digest(FILE)) and served.asked == [None, None]


def test_a_job_s_cap_holds_for_what_the_endpoint_has_fetched(fetcher, web):
    address = web(Web())
    assert find(fetcher, address)[0] == FILE
    assert "must be at most 0 MB" in refusal(fetcher, address, max_bytes=10)


def test_without_an_etag_it_is_fetched_again(fetcher, web, monkeypatch):
    served = Web(etag=None)
    address = web(served)
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    assert find(fetcher, address)[0] == FILE == find(fetcher, address)[0]
    assert served.asked == [None, None]


def test_jobs_at_once_fetch_once(fetcher, web):
    served = Web()
    served.pause = 0.3
    address = web(served)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: find(fetcher, address), range(8)))
    assert found == [(FILE, digest(FILE))] * 8 and len(served.asked) == 1


def test_a_failure_is_told_to_each_of_the_jobs_at_once(fetcher, web):
    address = web(lambda handler: (time.sleep(0.1), respond(handler, b"", 404)))
    with ThreadPoolExecutor(8) as threads:
        told = set(threads.map(lambda _: refusal(fetcher, address), range(8)))
    assert told == {"lora_fetch_failed: loras[0] was answered with HTTP status 404"}


def test_who_waits_for_another_s_fetch_keeps_no_other_file_from_being_fetched(fetching, web, gate):
    release, cancelled, fetcher = gate(), threading.Event(), fetching(8)
    slow, quick = web(lambda handler: release.wait()), web(Web())
    stop_or_failure = []

    def wait(stop):
        try:
            find(fetcher, slow, cancelled=stop)
        except (Cancelled, JobError) as error:
            stop_or_failure.append((type(error), str(error)))

    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(wait, cancelled if number else None) for number in range(8)]
        time.sleep(0.5)
        assert find(fetcher, quick) == (FILE, digest(FILE))
        cancelled.set()
        wait_until(lambda: len(stop_or_failure) == 7)
        assert stop_or_failure == [(Cancelled, "")] * 7
        waiting[0].result()
        assert stop_or_failure[7][1].endswith("loras[0] was not fetched within 8 seconds")
        # Left behind, the first one's fetch is still that of the name: who follows is late too, and in its own time.
        again = time.monotonic()
        assert "was not fetched within 8 seconds" in refusal(fetcher, slow) and time.monotonic() - again > 7.9
        release.set()


def test_a_file_that_has_just_come_is_found_while_every_thread_waits_for_a_server(fetcher, web, gate):
    release, asked = gate(), []
    slow, quick = web(lambda handler: asked.append(1) or release.wait()), web(Web())
    assert find(fetcher, quick)[0] == FILE
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(refusal, fetcher, f"{slow}/{number}") for number in range(4)]
        wait_until(lambda: len(asked) == 4)
        assert find(fetcher, quick)[0] == FILE
        assert "4 servers are still being waited for" in refusal(fetcher, f"{slow}/4")
        assert "4 servers are still being waited for" in refusal(fetcher, f"{slow}/4")  # at once: its turn is over
        release.set()
        assert all("could not be fetched" in one.result() for one in waiting)


def test_two_workers_at_once_keep_one_whole_file(fetching, store, web):
    served = Web()
    served.pause = 0.2
    address = web(served)
    fetchers = [fetching() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda one: find(one, address), fetchers))
    assert found == [(FILE, digest(FILE))] * 4 and len(served.asked) == 4
    assert len(list(store.folder.glob("*.safetensors"))) == 1 and not list(store.folder.glob("*.part"))


def test_five_gigabytes_are_refused_by_their_declaration(fetcher, web):
    address = web(lambda handler: respond(handler, FILE, Content_Length=str(5_000_000_000)))
    assert refusal(fetcher, address, max_bytes=2000 * MB) == (
        "invalid_input: loras[0] must be at most 2000 MB, not 5000.0 MB"
    )


def test_an_endless_stream_is_refused_at_the_cap_and_leaves_nothing(fetcher, store, web):
    sent = [0]

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(FILE)
        while True:
            handler.wfile.write(bytes(65536))
            sent[0] += 65536

    assert refusal(fetcher, web(endless), max_bytes=2 * MB) == "invalid_input: loras[0] must be at most 2 MB, not more"
    assert list(store.folder.iterdir()) == [] and sent[0] < 20 * MB


@pytest.mark.parametrize("body", [b"\x80\x04\x95" + bytes(5 * MB), b"PK\x03\x04" + bytes(5 * MB), b"", b"x", b"<html>"])
def test_what_is_no_safetensors_file_is_refused_at_its_ninth_byte(fetcher, store, web, body):
    address = web(lambda handler: respond(handler, body))
    assert "loras[0] must be a safetensors file" in refusal(fetcher, address, max_bytes=10 * MB)
    assert list(store.folder.iterdir()) == []


def test_an_endless_pickle_is_left_at_its_ninth_byte(fetcher, store, web):
    sent = [0]

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"\x80\x04\x95" + bytes(65536))
            sent[0] += 65536

    assert "loras[0] must be a safetensors file" in refusal(fetcher, web(endless), max_bytes=100 * MB)
    assert list(store.folder.iterdir()) == [] and sent[0] < 20 * MB


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/a", "may not be fetched"),
        ("https://169.254.169.254/latest", "may not be fetched"),
        ("http://[::1]/a.safetensors", "may not be fetched"),
        ("http://2130706433/", "may not be fetched"),
        ("ftp://example.com/a.safetensors", "must be an http or https URL"),
        ("file:///etc/passwd", "must be an http or https URL"),
        ("http://[oops/", "is not a valid URL"),
        ("https://no-such-host.invalid/a?token=secret", "does not resolve"),
    ],
)
def test_addresses_follow_the_rules_of_pictures(fetcher, url, words):
    text = refusal(fetcher, url)
    assert text.startswith("lora_fetch_failed: loras[0] ") and words in text
    assert "secret" not in text and "169.254" not in text


def test_a_slow_server_is_left_at_the_deadline_and_at_a_stop(fetching, web, gate):
    release, cancelled = gate(), threading.Event()
    silent, stopping = web(lambda handler: release.wait()), web(lambda handler: cancelled.set() or release.wait())
    assert "was not fetched within 0.3 seconds" in refusal(fetching(0.3), silent)
    with pytest.raises(Cancelled):
        find(fetching(60), stopping, cancelled=cancelled)


def test_a_full_disk_is_told(fetcher, store, web, monkeypatch):
    class Full(Incoming):
        def __call__(self, data):
            raise Unwritable

    monkeypatch.setattr("qwen_worker.lora.store.Incoming", Full)
    assert refusal(fetcher, web(Web())) == "lora_fetch_failed: loras[0] has no room on the worker's disk"
    assert list(store.folder.iterdir()) == []


def test_a_store_that_cannot_be_made_is_told(web, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fetcher = LoraFetcher(tmp_path / "file/store", MB, [], 5)
    assert "has no room on the worker's disk" in refusal(fetcher, web(Web()))


# peft's file, which has its alpha in a file beside it


class Peft(Web):
    """A folder with peft's two files behind a URL, or with the LoRA alone."""

    def __init__(self, config=b'{"lora_alpha": 16}', status=200):
        super().__init__()
        self.config, self.status = config, status

    def __call__(self, handler):
        if handler.path.startswith("/a/adapter_config.json"):
            return respond(handler, self.config, self.status)
        super().__call__(handler)


def found_file(fetcher, text, **options):
    return fetcher.find(text, FetchTarget("loras[0]", MB, lora_fetch.FETCH_FAILED), (), **options)


def test_a_url_s_configuration_comes_along_and_is_asked_for_with_it(fetcher, fetching, web, monkeypatch):
    served = Peft()
    url = web(served) + "/a/adapter_model.safetensors?download=true"
    file = found_file(fetcher, url)
    assert file.config.read_bytes() == served.config and file.key == digest(FILE) and not file.warnings
    assert found_file(fetching(), url).config == file.config
    served.config = b'{"lora_alpha": 32}'
    assert found_file(fetcher, url).config == file.config  # asked a moment ago
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    assert found_file(fetcher, url).config.read_bytes() == served.config and served.sent == len(FILE)
    assert found_file(fetcher, url.replace("adapter_model", "style")).config is None


def test_a_configuration_that_is_gone_from_the_disk_is_fetched_again(fetcher, web):
    served = Peft()
    url = web(served) + "/a/adapter_model.safetensors"
    found_file(fetcher, url).config.unlink()
    assert found_file(fetcher, url).config.read_bytes() == served.config


@pytest.mark.parametrize("config", [{"status": 404}, {"status": 403}, {"config": b"<!doctype html>"}])
def test_a_url_without_a_configuration_is_drawn_and_told(fetcher, web, config):
    file = found_file(fetcher, web(Peft(**config)) + "/a/adapter_model.safetensors")
    assert file.config is None
    assert len(file.warnings) == 1 and file.warnings[0].startswith("has no adapter_config.json beside it, which peft")


def test_a_configuration_that_may_come_at_another_time_is_waited_for(fetcher, web):
    """Without it the same job would be drawn at two strengths."""
    served = Peft(status=503)
    url = web(served) + "/a/adapter_model.safetensors"
    assert (
        refusal(fetcher, url) == "lora_fetch_failed: loras[0]'s adapter_config.json was answered with HTTP status 503"
    )
    served.status = 200
    assert found_file(fetcher, url).config.read_bytes() == served.config


def test_a_configuration_of_megabytes_is_refused(fetcher, web, store):
    url = web(Peft(b"[" * 5 * MB)) + "/a/adapter_model.safetensors"
    sentence = "loras[0]'s adapter_config.json must be at most 1 MB, not 5.0 MB"
    assert refusal(fetcher, url, max_bytes=9 * MB) == f"invalid_input: {sentence}"


@pytest.mark.parametrize(
    ("files", "name", "is_used"),
    [
        (["adapter_model"], "adapter_model", True),
        (["style"], "style", True),
        (["adapter_model", "style"], "adapter_model", True),
        (["adapter_model", "style"], "style", False),
        (["one", "two"], "one", False),
    ],
)
def test_a_configuration_belongs_to_peft_s_own_name_or_to_the_only_lora(fetcher, tmp_path, files, name, is_used):
    for file in files:
        (tmp_path / f"{file}.safetensors").write_bytes(FILE)
    (tmp_path / "adapter_config.json").write_text("{}")
    found = fetcher.find(f"{name}.safetensors", FetchTarget("loras[0]", MB), [tmp_path])
    assert found.config == (tmp_path / "adapter_config.json" if is_used else None)
    assert [warning[:37] for warning in found.warnings] == ["lies beside other LoRAs and one adapt"] * (not is_used)


def test_peft_s_file_without_its_configuration_is_told(fetcher, tmp_path):
    for name in ("adapter_model", "other"):
        (tmp_path / f"{name}.safetensors").write_bytes(FILE)
    warnings = [
        fetcher.find(f"{name}.safetensors", FetchTarget("loras[0]", MB), [tmp_path]).warnings
        for name in ("adapter_model", "other")
    ]
    assert len(warnings[0]) == 1 and "has no adapter_config.json beside it" in warnings[0][0] and not warnings[1]


def test_a_configuration_out_of_the_folder_is_not_followed(fetcher, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.json").write_text('{"lora_alpha": "secret"}')
    (tmp_path / "root/a.safetensors").write_bytes(FILE)
    (tmp_path / "root/adapter_config.json").symlink_to(tmp_path / "secret.json")
    assert fetcher.find("a.safetensors", FetchTarget("loras[0]", MB), [tmp_path / "root"]).config is None


# The bound, and kills


def keep(store, data):
    with store.incoming() as incoming:
        incoming(data)
    return store.folder / incoming.file


def test_the_longest_unused_goes_first(tmp_path):
    store = LoraStore(tmp_path / "store", 2500)
    files = [keep(store, bytes([number]) * 1000) for number in range(2)]
    os.utime(files[0], (2, 2))
    os.utime(files[1], (1, 1))
    files.append(keep(store, bytes([2]) * 1000))
    assert [file.exists() for file in files] == [True, False, True]
    keep(store, bytes(9000))
    assert [file.stat().st_size for file in store.folder.glob("*.safetensors")] == [9000]


def test_a_file_that_is_used_is_no_longer_the_longest_unused(store, web):
    fetcher = LoraFetcher(store.folder, len(FILE) + len(OTHER), [], 5)
    addresses = [web(Web(FILE)), web(Web(OTHER)), web(Web(MORE))]
    for address in addresses[:2]:
        find(fetcher, address)
    for file in store.folder.glob("*.safetensors"):
        os.utime(file, (1, 1))
    find(fetcher, addresses[0])
    find(fetcher, addresses[2])
    kept = {file.stem for file in store.folder.glob("*.safetensors")}
    assert kept == {digest(FILE), digest(MORE)}
    assert Notes(store.folder).read(addresses[1]) is None


def test_what_killed_workers_left_is_cleared_in_time(store):
    store.folder.mkdir()
    parts = [store.folder / "old.part", store.folder / "new.part"]
    for part in parts:
        part.write_bytes(b"x")
    os.utime(parts[0], (time.time() - ABANDONED_SECONDS - 60,) * 2)
    keep(store, FILE)
    assert [part.exists() for part in parts] == [False, True]


def test_the_names_that_are_remembered_are_bounded(store, monkeypatch):
    monkeypatch.setattr("qwen_worker.lora.notes.MAX_NAMES", 5)
    file = keep(store, FILE).name
    for number in range(9):
        Notes(store.folder).write(f"name {number}", Fetched(file, "key", ""))
    assert len(list(store.folder.glob("*.json"))) == 5


KILLED = """
import sys, os, signal
from pathlib import Path
from qwen_worker.lora.store import LoraStore
with LoraStore(Path(sys.argv[1]), 10**9).incoming() as incoming:
    incoming(bytes(100_000))
    incoming.stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_a_file_comes_leaves_no_file(store):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(store.folder)], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [file.suffix for file in store.folder.iterdir()] == [".part"]
    assert keep(store, bytes(100_000)).stat().st_size == 100_000


def test_a_note_that_cannot_be_read_is_none(store):
    notes, file = Notes(store.folder), keep(store, FILE).name
    note = Fetched(file, "key", "", etag="etag")
    notes.write("name", note)
    assert notes.read("name") == note
    for text in ("", "[]", '{"file": "x"}', '{"file": 1, "key": "2"}', '{"file": "x", "key": "y", "more": 3}', "{",
                 '{"file": "gone.safetensors", "key": "key", "config": ""}',
                 f'{{"file": "{file}", "key": "before there were configurations"}}'):  # fmt: skip
        notes.path("name").write_text(text)
        assert notes.read("name") is None
