"""What a start imports, reads ahead and says of its seconds."""

import gc
import json
import os
import sys
import threading
import time

import psutil
import pytest

from qwen_worker.errors import LoadError
from qwen_worker.loading import builder, libraries, page_cache
from qwen_worker.loading.page_cache import ReadAhead
from qwen_worker.model_settings import Precision
from qwen_worker.stopwatch import Stopwatch

from ..conftest import run
from ..support.control_plane import ControlPlane, WorkerProcess, addresses
from ..support.patience import run_to_its_end, wait_until

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
    with ReadAhead(files, 10**9) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))
    assert sorted(seen) == [(file.name, offset) for file in files for offset in range(0, 10_000, 1000)]
    assert ahead.bytes == 30_000


def test_reading_ahead_goes_on_where_it_was_left(files, monkeypatch):
    seen = reads_of(monkeypatch, pause=0.02)
    ahead = ReadAhead(files, 10**9)
    with ahead:
        wait_until(lambda: len(seen) >= 6)
    left = len(seen)
    with ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))
    assert 6 <= left < 30 == len(seen) == len(set(seen))


def test_no_more_is_read_ahead_than_there_is_room_for(files, monkeypatch):
    seen = reads_of(monkeypatch)
    with ReadAhead(files, 15_999) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))
    assert len(seen) == 15 and {name for name, _ in seen} == {"0", "1"}
    with ReadAhead(files, -5) as ahead:
        pass
    assert ahead.bytes == 0


def test_reading_ahead_ends_with_what_it_ran_beside(files, monkeypatch):
    seen = reads_of(monkeypatch, pause=0.05)
    with ReadAhead(files, 10**9):
        wait_until(lambda: seen)
    assert 0 < len(seen) < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead-")]


def test_a_file_that_cannot_be_read_ahead_is_left_to_the_reader(files, tmp_path):
    with ReadAhead([tmp_path / "nothing", *files], 10**9) as ahead:
        wait_until(lambda: not any(thread.is_alive() for thread in ahead.threads))


@pytest.fixture
def import_anew(monkeypatch):
    """import_anew(before) has the libraries imported as if they were not yet; `before(library)` comes ahead of each."""
    real = libraries.import_library

    def follow(before):
        def import_library(library):
            before(library)
            real(library)

        monkeypatch.setattr(libraries, "imported", set())
        monkeypatch.setattr(libraries, "import_library", import_library)

    yield follow
    gc.unfreeze()


def test_weights_are_read_ahead_while_the_libraries_are_imported(cold_worker, import_anew, monkeypatch):
    read = []
    import_anew(lambda library: library == "transformers" and wait_until(lambda: len(read) >= 3))
    monkeypatch.setattr(page_cache, "read_chunk", lambda file, *_: read.append(f"{file.parent.name}/{file.name}") or 1)
    run(cold_worker(QWEN_EDIT_MODEL="/none"), FIELDS)
    model = "diffusion_pytorch_model.safetensors"
    assert read == ["text_encoder/model.safetensors", f"transformer/{model}", f"vae/{model}"]


def test_the_text_encoder_is_read_while_the_transformer_s_library_is_imported(cold_worker, import_anew, monkeypatch):
    """The thread that imports it waits here for the text encoder: a load that waited for all libraries would hang."""
    loaded, real = [], builder.load_component

    def load_component(checkpoint, name, *others):
        component = real(checkpoint, name, *others)
        loaded.append(name)
        return component

    monkeypatch.setattr(builder, "load_component", load_component)
    import_anew(lambda library: library == "diffusers" and wait_until(lambda: "text_encoder" in loaded))
    libraries.begin()
    run(cold_worker(QWEN_EDIT_MODEL="/none"), FIELDS)
    assert loaded.index("text_encoder") < loaded.index("scheduler") and {"transformer", "vae"} < set(loaded)


def test_a_library_whose_import_has_failed_ahead_is_imported_where_it_is_needed(cold_worker, import_anew):
    tried = []

    def fail_once(library):
        tried.append(library)
        if tried == ["torch", "transformers", "diffusers"]:
            raise OSError("Input/output error")

    import_anew(fail_once)
    libraries.begin()
    wait_until(lambda: len(tried) == 3)
    assert run(cold_worker(QWEN_EDIT_MODEL="/none"), FIELDS)["output"]["metadata"]["backend"] == "qwen-image"
    assert tried == ["torch", "transformers", "diffusers", "diffusers"]


@pytest.mark.parametrize("failing", ["torch", "transformers", "diffusers"])
def test_a_library_that_cannot_be_imported_is_no_fault_of_what_is_read_next(cold_worker, import_anew, failing):
    tried = []

    def fail_once(library):
        tried.append(library)
        if tried.count(failing) == 1 and library == failing:
            raise OSError("Input/output error")

    import_anew(fail_once)
    pipelines = cold_worker(QWEN_EDIT_MODEL="/none").pipelines
    with pytest.raises(LoadError, match="^OSError: Input/output error$") as failure:
        pipelines.load("generate")
    assert failure.value.transient
    assert pipelines.load("generate").stood_down == {} and tried.count(failing) == 2


def test_nobody_looks_for_garbage_during_the_imports(import_anew):
    collecting = []
    import_anew(lambda library: collecting.append(gc.isenabled()))
    frozen = gc.get_freeze_count()
    libraries.import_all()
    assert collecting == [False, False, False] and gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_a_process_that_is_forked_during_the_imports_looks_for_garbage():
    with libraries.collector_paused():
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() else 1)
        assert not gc.isenabled()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


FIRST_PICTURE = """
import asyncio, json, os, sys
import runpod_handler
reply = asyncio.run(runpod_handler.handler({"id": "first", "input": json.loads(sys.argv[1])}))
assert reply["metadata"]["backend"] == "qwen-image"
watched = "torch._inductor.compile_fx", "bitsandbytes", "torchao", "peft", "runpod"
print(json.dumps([[name for name in watched if name in sys.modules], os.environ.get("TORCHDYNAMO_DISABLE")]))
import torch
assert torch.compile(lambda x: x + 1, backend="eager").__name__ == "<lambda>"
print(hasattr(torch.compile(lambda x: x, backend="eager"), "_torchdynamo_orig_callable"))
"""


def test_a_picture_on_a_processor_needs_no_compiler_and_hides_no_library_and_no_compiler(environment):
    """bitsandbytes would have torch's compiler imported; the libraries that are installed are there for everybody."""
    command = [sys.executable, "-c", FIRST_PICTURE, json.dumps(FIELDS)]
    done = run_to_its_end(command, env=environment(QWEN_FALLBACK="forbid"))
    assert done.returncode == 0, done.stderr
    *_, found, compiles = done.stdout.splitlines()
    assert json.loads(found) == [["bitsandbytes", "torchao", "peft"], None]
    assert compiles == "True"


def test_a_worker_imports_the_libraries_before_any_job_unless_it_loads_no_model(environment, web):
    def has_torch(worker):
        return any("libtorch" in one.path for one in psutil.Process(worker.process.pid).memory_maps())

    plane = ControlPlane()
    with WorkerProcess(environment(**addresses(web(plane)))) as worker:
        wait_until(lambda: has_torch(worker), worker.process.pid)
        assert not plane.taken
        plane.wait(lambda: len(plane.pings) > 1)  # of the heartbeat, which is forked during the imports
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_FALLBACK="force", **addresses(web(plane)))) as worker:
        plane.put("stand-in", FIELDS)
        plane.result("stand-in")
        assert not has_torch(worker)


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
