"""LoRA files from the hub: chosen by its listing, kept in a cache of its library, asked for again, bounded."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen_worker.errors import InvalidInput
from qwen_worker.lora import fetch as lora_fetch
from qwen_worker.lora.fetch import LoraFetcher
from qwen_worker.lora.hub_cache import HubCache
from qwen_worker.lora.store import ABANDONED_SECONDS
from qwen_worker.lora.tensor_file import TensorFile
from qwen_worker.network import hub

from ..conftest import ROOT
from ..support.local_hub import LocalHub
from .conftest import FILE, MB, OTHER, digest, find, refusal


@pytest.fixture
def repos(tmp_path):
    """The folder of the hub's repositories: Org/One, with one LoRA, and Org/Many."""
    for name, data in {"One/style.safetensors": FILE, "One/README.md": b"x", "Many/a.safetensors": FILE,
                       "Many/b.safetensors": OTHER, "Many/sub/c.safetensors": OTHER}.items():  # fmt: skip
        path = tmp_path / "repos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "repos"


@pytest.fixture
def served(web, monkeypatch, repos):
    """The hub that holds them."""
    hub_here = LocalHub({f"Org/{name}": repos / name for name in ("One", "Many")})
    monkeypatch.setenv("HF_ENDPOINT", web(hub_here))
    return hub_here


@pytest.fixture
def cached(fetcher):
    """cached(): the LoRA files in the cache, as REPOSITORY/FILE, in order."""
    folder = fetcher.hub_cache.folder

    def names():
        files = [file.relative_to(folder).parts for file in folder.glob("models--*/snapshots/**/*.safetensors")]
        return sorted("/".join([parts[0].removeprefix("models--Org--"), *parts[3:]]) for parts in files)

    return names


# Fetched, and asked for again


def test_a_repository_s_only_lora_or_a_named_one_is_fetched_once(fetcher, served, store, cached):
    assert find(fetcher, "Org/One")[0] == FILE
    assert find(fetcher, "Org/Many/sub/c.safetensors")[0] == OTHER
    assert served.sent == {digest(FILE): len(FILE), digest(OTHER): len(OTHER)}
    assert find(fetcher, f"Org/One@{served.commit('Org/One')}")[0] == FILE
    assert find(fetcher, "Org/One/style.safetensors")[0] == FILE
    assert served.sent == {digest(FILE): len(FILE), digest(OTHER): len(OTHER)}
    asked = len(served.paths)
    assert find(fetcher, "Org/One")[0] == FILE and len(served.paths) == asked
    assert cached() == ["Many/sub/c.safetensors", "One/style.safetensors"]
    assert not list(store.folder.glob("*.safetensors"))


def test_an_id_in_another_case_is_the_same_repository(fetcher, fetching, served, repos, cached):
    served.repos["org/one"] = repos / "One"
    found = find(fetcher, "Org/One")
    asked = len(served.paths)
    assert find(fetcher, "org/one") == found and len(served.paths) == asked
    assert find(fetcher, "org/one/style.safetensors") == found and served.sent == {digest(FILE): len(FILE)}
    assert cached() == ["One/style.safetensors"] and len(list(fetcher.hub_cache.folder.glob("models--*"))) == 1
    served.status = 503
    assert find(fetching(), "org/one") == found


def test_what_the_hub_cannot_give_is_told(fetcher, served):
    assert refusal(fetcher, "Org/Many") == (
        "invalid_input: loras[0] must name a file of Org/Many, which holds 3: a.safetensors, b.safetensors, "
        "sub/c.safetensors"
    )
    assert "names x.safetensors, which Org/One does not hold" in refusal(fetcher, "Org/One/x.safetensors")
    assert "cannot be had: No/Such does not exist on the hub" in refusal(fetcher, "No/Such")
    assert "must be at most 0 MB" in refusal(fetcher, "Org/One", max_bytes=50) and served.sent == {}


def test_a_commit_that_has_not_changed_is_asked_for_and_not_fetched_again(fetcher, fetching, served, monkeypatch):
    found = find(fetcher, "Org/One")
    asked = len(served.paths)
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    assert find(fetcher, "Org/One") == found == find(fetching(), "Org/One")
    assert [path for path in served.paths[asked:] if "resolve" in path or "lfs" in path] == []
    assert len(served.paths) > asked and served.sent == {digest(FILE): len(FILE)}


def test_a_file_that_has_changed_is_fetched_and_an_equal_one_of_another_commit_is_not(
    fetcher, served, repos, monkeypatch
):
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    found = find(fetcher, "Org/One")
    (repos / "One/LICENSE.txt").write_text("free")
    assert find(fetcher, "Org/One") == found and served.sent == {digest(FILE): len(FILE)}
    (repos / "One/style.safetensors").write_bytes(OTHER)
    data, key = find(fetcher, "Org/One")
    assert data == OTHER and key != found[1] and served.sent[digest(OTHER)] == len(OTHER)


def test_jobs_that_want_one_file_at_once_fetch_it_once_under_whichever_name(fetcher, served):
    served.pause = 0.3
    names = ["Org/One", "Org/One/style.safetensors", f"Org/One@{served.commit('Org/One')}"] * 2
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda name: find(fetcher, name), names))
    assert len(set(found)) == 1 and found[0][0] == FILE and served.sent == {digest(FILE): len(FILE)}


def test_workers_that_share_the_disk_fetch_a_file_once(fetching, served):
    served.pause = 0.3
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda fetcher: find(fetcher, "Org/One"), [fetching() for _ in range(4)]))
    assert len(set(found)) == 1 and found[0][0] == FILE and served.sent == {digest(FILE): len(FILE)}


def test_a_hub_that_cannot_be_reached_leaves_what_it_gave_last(fetcher, fetching, served, repos, monkeypatch):
    found = {name: find(fetcher, name) for name in ("Org/One", "Org/Many/a.safetensors")}
    (repos / "Many/README.md").write_text("new")
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    find(fetcher, "Org/Many/b.safetensors")  # of a later commit than a's
    served.status = 503
    for worker in (fetcher, fetching()):
        assert {name: find(worker, name) for name in found} == found
        assert (
            "lora_fetch_failed: loras[0] cannot be had: Org/Many could not be fetched: the hub answered 503"
            in refusal(worker, "Org/Many/sub/c.safetensors")
        )


def test_what_the_hub_refuses_now_is_not_given_from_the_disk(fetcher, served, monkeypatch):
    find(fetcher, "Org/One")
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    served.gated.add("Org/One")
    assert "Org/One is gated on the hub" in refusal(fetcher, "Org/One")


def test_a_connection_that_breaks_is_gone_on_from_where_it_broke(fetcher, served, monkeypatch):
    monkeypatch.setattr("tests.support.local_hub.PIECE", 64)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64)
    served.broken_off["style.safetensors"] = 64
    assert find(fetcher, "Org/One")[0] == FILE and served.sent == {digest(FILE): len(FILE)}


@pytest.mark.parametrize("data", [b"\x80\x04" + bytes(100), b"", b"<html>"])
def test_a_pickle_from_the_hub_is_refused_and_not_kept(fetcher, served, repos, data):
    (repos / "One/style.safetensors").write_bytes(data)
    assert "must be a safetensors file" in refusal(fetcher, "Org/One")
    assert not list(fetcher.hub_cache.folder.glob("models--*"))


def test_beside_a_pickle_the_repository_s_other_files_stay(fetcher, served, repos, cached):
    (repos / "Many/b.safetensors").write_bytes(b"\x80\x04" + bytes(100))
    assert find(fetcher, "Org/Many/a.safetensors")[0] == FILE
    assert "must be a safetensors file" in refusal(fetcher, "Org/Many/b.safetensors")
    assert cached() == ["Many/a.safetensors"]


def test_a_disk_that_cannot_be_written_gives_what_it_has(fetcher, fetching, served, tmp_path, monkeypatch):
    no_room = "lora_fetch_failed: loras[0] has no room on the worker's disk"
    (tmp_path / "file").write_text("in the way")
    assert refusal(LoraFetcher(tmp_path / "file/store", MB, [], 5), "Org/One") == no_room
    found = find(fetcher, "Org/One")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write where the disk lets it
    worker = fetching()
    assert find(worker, "Org/One") == found and refusal(worker, "Org/Many/b.safetensors") == no_room


@pytest.mark.parametrize("place", ["models/Org/Name", "hub-cache/models--Org--Name/snapshots/0123abc"])
def test_what_is_baked_or_cached_is_not_asked_of_the_hub(fetcher, tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(FILE)
    (folder / "checkpoint-500.safetensors").write_bytes(OTHER)
    assert find(fetcher, "Org/Name")[0] == FILE
    assert find(fetcher, "Org/Name/checkpoint-500.safetensors")[0] == OTHER


def test_the_cache_of_models_stays_as_it_is(fetcher, served, tmp_path):
    """A commit beside a checkpoint's only one would have the checkpoint looked for anew."""
    find(fetcher, "Org/One")
    assert not (tmp_path / "hub-cache").exists()


def test_the_listing_tells_commit_and_sizes(served):
    assert hub.listing("Org/One", "") == (
        served.commit("Org/One"), {"README.md": 1, "style.safetensors": len(FILE)},
    )  # fmt: skip


# peft's file, which has its alpha in a file beside it


CONFIG = b'{"lora_alpha": 16}'


@pytest.fixture
def peft(repos, served):
    """The repository Org/Many, in which one folder is peft's."""
    for name, data in {"peft/adapter_model.safetensors": FILE, "peft/adapter_config.json": CONFIG,
                       "peft/other.safetensors": OTHER}.items():  # fmt: skip
        (repos / "Many" / name).parent.mkdir(exist_ok=True)
        (repos / "Many" / name).write_bytes(data)
    return "Org/Many/peft/adapter_model.safetensors"


def found_file(fetcher, text):
    return fetcher.find(text, lora_fetch.FetchTarget("loras[0]", MB, lora_fetch.FETCH_FAILED), ())


def test_a_configuration_comes_with_the_file_that_it_is_of(fetcher, fetching, served, peft, repos, monkeypatch):
    monkeypatch.setattr(lora_fetch, "REASK_SECONDS", 0)
    file = found_file(fetcher, peft)
    assert file.config.read_bytes() == CONFIG and file.config.parent == file.path.parent and not file.warnings
    other = found_file(fetcher, "Org/Many/peft/other.safetensors")
    assert other.config is None and "lies beside other LoRAs" in other.warnings[0]
    assert found_file(fetcher, "Org/Many/a.safetensors") == found_file(fetching(), "Org/Many/a.safetensors")
    served.status = 503
    for worker in (fetcher, fetching()):
        assert found_file(worker, peft) == file and found_file(worker, "Org/Many/peft/other.safetensors") == other
    served.status = 200
    (repos / "Many/peft/adapter_config.json").write_bytes(b'{"lora_alpha": 32}')
    assert found_file(fetcher, peft).config.read_bytes() == b'{"lora_alpha": 32}'


def test_a_file_is_not_given_without_the_configuration_that_it_had(fetcher, served, peft):
    """Without it the LoRA would be drawn at another strength."""
    file = found_file(fetcher, peft)
    fetcher.hub_cache.delete([file.config.resolve()])
    assert found_file(fetcher, peft) == file and file.config.is_file()
    fetcher.hub_cache.delete([file.config.resolve()])
    served.status = 503
    assert "the hub answered 503" in refusal(fetcher, peft)


def test_a_configuration_of_megabytes_is_refused_unfetched(fetcher, served, peft, repos):
    (repos / "Many/peft/adapter_config.json").write_bytes(b"x" * 2 * MB)
    sentence = "invalid_input: loras[0]'s adapter_config.json must be at most 1 MB, not 2.0 MB"
    assert refusal(fetcher, peft) == sentence and served.sent == {}


# The bound, and kills


@pytest.fixture
def shelf(served, repos):
    """Four LoRAs of 1,000 bytes, two of one commit, and one of 9,000 bytes."""
    start = (900).to_bytes(8, "little") + b"{"
    for number, name in enumerate(["One/style", "Many/a", "Many/b", "Many/sub/c"]):
        (repos / f"{name}.safetensors").write_bytes(start + bytes([number]) * 991)
    (repos / "Many/large.safetensors").write_bytes(start + bytes(8991))
    return served


def fetch_in_turn(fetcher, *names):
    """Fetch them, each later than the one before by the clock of files."""
    for number, name in enumerate(names):
        path = fetcher.find(name, lora_fetch.FetchTarget("loras[0]", MB), ()).path
        os.utime(path, (number + 1, number + 1))


def test_the_longest_unused_goes_first_also_of_one_commit_s_files(shelf, store, cached, monkeypatch):
    fetcher = LoraFetcher(store.folder, 2500, [], 5)
    fetch_in_turn(fetcher, "Org/Many/a.safetensors", "Org/One", "Org/Many/b.safetensors")
    assert cached() == ["Many/b.safetensors", "One/style.safetensors"]
    find(fetcher, "Org/One")  # used again
    find(fetcher, "Org/Many/sub/c.safetensors")
    assert cached() == ["Many/sub/c.safetensors", "One/style.safetensors"]
    find(fetcher, "Org/Many/large.safetensors")  # alone it may be larger than the bound
    assert cached() == ["Many/large.safetensors"]
    assert [file.stat().st_size for file in fetcher.hub_cache.folder.glob("models--*/blobs/*")] == [9000]
    assert not (fetcher.hub_cache.folder / "models--Org--One").exists()


def test_what_was_evicted_is_fetched_again(shelf, store, repos):
    fetcher = LoraFetcher(store.folder, 1500, [], 5)
    fetch_in_turn(fetcher, "Org/One", "Org/Many/a.safetensors")
    assert find(fetcher, "Org/One")[0] == (repos / "One/style.safetensors").read_bytes()


def test_files_from_urls_and_from_the_hub_have_a_bound_each(shelf, store, cached):
    fetcher = LoraFetcher(store.folder, 2500, [], 5)
    with fetcher.store.incoming() as incoming:
        incoming(bytes(2400))
    fetch_in_turn(fetcher, "Org/One", "Org/Many/a.safetensors")
    assert (store.folder / incoming.file).is_file() and len(cached()) == 2


def test_a_file_that_is_open_is_read_to_its_end_after_its_eviction(served, store, repos, cached):
    fetcher = LoraFetcher(store.folder, len(FILE), [], 5)
    path = fetcher.find("Org/One", lora_fetch.FetchTarget("loras[0]", MB), ()).path
    tensors = TensorFile(path, "loras[0]")
    find(fetcher, "Org/Many/b.safetensors")
    assert cached() == ["Many/b.safetensors"] and not path.exists()
    assert tensors.read_tensor("transformer_blocks.0.attn.to_q.lora_A.weight").sum() == 16


def test_a_repository_that_is_being_fetched_from_is_not_taken_away(shelf, store, cached):
    fetcher = LoraFetcher(store.folder, 1500, [], 5)
    fetch_in_turn(fetcher, "Org/One")
    part = fetcher.hub_cache.folder / "models--Org--One/blobs/0123.4567.incomplete"
    part.write_bytes(b"half")
    find(fetcher, "Org/Many/a.safetensors")
    assert cached() == ["Many/a.safetensors"] and part.exists()


def test_what_killed_workers_left_is_cleared_in_time(shelf, store, cached):
    fetcher = LoraFetcher(store.folder, 1500, [], 5)
    fetch_in_turn(fetcher, "Org/One")
    parts = [fetcher.hub_cache.folder / f"models--Org--One/blobs/{age}.incomplete" for age in ("old", "new")]
    for part in parts:
        part.write_bytes(b"half")
    os.utime(parts[0], (time.time() - ABANDONED_SECONDS - 60,) * 2)
    find(fetcher, "Org/Many/a.safetensors")
    assert [part.exists() for part in parts] == [False, True]


KILLED = """
import os, signal, sys
from pathlib import Path
from qwen_worker.lora.hub_cache import HubCache
import huggingface_hub.file_download as library

def killed(response, *args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

library._chmod_and_move = killed
HubCache(Path(sys.argv[1]), 10**9).fetch("Org/One", "style.safetensors", sys.argv[2], "loras[0]")
"""


def test_a_kill_while_a_file_comes_leaves_no_file(served, tmp_path):
    cache, commit = HubCache(tmp_path / "cache", 10 * MB), served.commit("Org/One")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(cache.folder), commit], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(cache.folder.rglob("*.incomplete"))) == 1 and not list(cache.folder.rglob("*.safetensors"))
    assert cache.fetch("Org/One", "style.safetensors", commit, "loras[0]").read_bytes() == FILE


def test_a_refusal_names_the_lora(served, tmp_path, repos):
    (repos / "One/style.safetensors").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"loras\[3\] must be a safetensors file"):
        HubCache(tmp_path, MB).fetch("Org/One", "style.safetensors", served.commit("Org/One"), "loras[3]")
