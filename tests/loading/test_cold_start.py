"""What a start imports, reads ahead and says of its seconds."""

import threading
import time

import pytest

from qwen_worker.loading import libraries, page_cache
from qwen_worker.loading.page_cache import reading_ahead
from qwen_worker.model_settings import Precision
from qwen_worker.stopwatch import Stopwatch

from ..conftest import run
from ..support.patience import wait_until

FIELDS = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files of 10 reads each."""
    monkeypatch.setattr(page_cache, "CHUNK_BYTES", 1000)
    found = [tmp_path / str(number) for number in range(3)]
    for file in found:
        file.write_bytes(bytes(10_000))
    return found


def reads_of(monkeypatch, pause=0.0):
    seen, real = [], page_cache.read_chunk

    def counted(file, scratch, offset):
        time.sleep(pause)
        seen.append((file.name, offset))
        return real(file, scratch, offset)

    monkeypatch.setattr(page_cache, "read_chunk", counted)
    return seen


def test_files_are_read_ahead_whole_and_once(files, monkeypatch):
    seen = reads_of(monkeypatch)
    with reading_ahead(files, 10**9) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))
    assert sorted(seen) == [(file.name, offset) for file in files for offset in range(0, 10_000, 1000)]
    assert ahead.bytes == 30_000


def test_no_more_is_read_ahead_than_there_is_room_for(files, monkeypatch):
    seen = reads_of(monkeypatch)
    with reading_ahead(files, 15_999) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))
    assert len(seen) == 15 and {name for name, _ in seen} == {"0", "1"}
    with reading_ahead(files, -5) as ahead:
        pass
    assert ahead.bytes == 0


def test_reading_ahead_ends_with_what_it_ran_beside(files, monkeypatch):
    seen = reads_of(monkeypatch, pause=0.05)
    with reading_ahead(files, 10**9):
        wait_until(lambda: seen)
    assert 0 < len(seen) < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead-")]


def test_a_file_that_cannot_be_read_ahead_is_left_to_the_reader(files, tmp_path):
    with reading_ahead([tmp_path / "nothing", *files], 10**9) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))


def test_weights_are_read_ahead_while_the_libraries_are_imported(cold_worker, monkeypatch):
    real, read = libraries.import_all, []

    def slowly():
        wait_until(lambda: len(read) >= 3)
        real()

    monkeypatch.setattr(libraries, "import_all", slowly)
    monkeypatch.setattr(page_cache, "read_chunk", lambda file, *_: read.append(f"{file.parent.name}/{file.name}") or 1)
    run(cold_worker(QWEN_EDIT_MODEL="/none"), FIELDS)
    model = "diffusion_pytorch_model.safetensors"
    assert read == ["text_encoder/model.safetensors", f"transformer/{model}", f"vae/{model}"]


def test_a_second_counts_for_one_stage(monkeypatch):
    now = 0
    monkeypatch.setattr("qwen_worker.stopwatch.time.perf_counter", lambda: now)
    stages = Stopwatch()
    with stages("outer"):
        now = 50
        with stages("inner"):
            now = 150
        now = 200
    now = 1000
    with stages("inner"):
        now = 1050
    thread = threading.Thread(target=lambda: stages("other").__enter__())
    thread.start()
    thread.join()
    assert stages.report() == {"outer": 100, "inner": 150}


def test_health_and_log_say_where_a_load_s_seconds_went(cold_worker, capsys):
    worker = cold_worker(QWEN_EDIT_MODEL="/none", QWEN_PRECISION=Precision.INT8)
    assert run(worker, FIELDS)["output"]["metadata"]["backend"] == "qwen-image"
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    stages = model["stages"]
    every = "import card build read quantize trim other compile compare first_job"
    assert set(every.split()) | {"check"} == set(stages)
    loading = sum(seconds for name, seconds in stages.items() if name != "first_job")
    assert 0.7 * model["load_seconds"] < loading <= model["load_seconds"] + 0.01
    first = stages["first_job"]
    assert 0 < first
    run(worker, FIELDS | {"seed": 2})
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["stages"]["first_job"] == first
    line = next(line for line in capsys.readouterr().out.splitlines() if " seconds: " in line)
    assert f"import {stages['import']:.2f}, " in line and line.endswith("; prepared: none")
