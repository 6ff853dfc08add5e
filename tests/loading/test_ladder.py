"""What of the worker's own fails costs itself: by which plainer way the model draws, what is tried again, and when.

`test_faults.py` meets many more errors; here is what cannot be seen from the replies around one.
"""

import dataclasses
import gc
import json
import weakref

import pytest
import torch

from qwen_worker.drawing import inference
from qwen_worker.errors import LoadError, describe_error, is_out_of_memory
from qwen_worker.loading import builder, components, pipelines
from qwen_worker.loading.crash_notes import CrashNotes
from qwen_worker.loading.stand_down import StoodDown
from qwen_worker.memory import failures, placement
from qwen_worker.memory.footprint import GB
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.model import host_memory, quantization
from qwen_worker.model_settings import Precision, Saving, Speedup
from qwen_worker.speed import compiled, gelu, speedups
from qwen_worker.weights import assembly, modulation_rows, staging

from ..conftest import as_text, place_by, run
from ..memory.test_placement import GENERATE, card

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}
ERRORS = {
    "cudnn": RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."),
    "strides": AssertionError("expected size 24==24, stride 128==3072 at dim=1"),
    "torchao": AssertionError("Float8 dynamic quantization requires CUDA capability 8.9"),
    "ptxas": RuntimeError("PTXAS error: Internal Triton PTX codegen error"),
    "launch": RuntimeError("Triton Error [CUDA]: out of resources"),
    "disk": OSError(5, "Input/output error", "/srv/models/secret/model.safetensors"),
}


@pytest.fixture
def failing(monkeypatch):
    """failing(owner, name, error): the function raises, every time or only as often as `times` says."""

    def plant(owner, name, error, times=10**6):
        real, calls = getattr(owner, name), []

        def fails(*arguments, **options):
            calls.append(name)
            if len(calls) <= times:
                raise fresh(error)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, fails)
        return calls

    return plant


def fresh(error):
    """The error as one that was never raised: a traceback would hold the frames of an earlier test."""
    return type(error)(*error.args) if not isinstance(error, OSError) else OSError(*error.args, error.filename)


def drawn(worker, **fields):
    """The output of a job that the model drew."""
    body = run(worker, SMALL | fields)
    assert "error" not in body, body
    assert body["output"]["metadata"]["backend"] == "qwen-image", body["output"]["metadata"]
    return body["output"]


def stood_down(worker):
    """What `health` says that the loaded models do without, and why."""
    reasons = {}
    for model in run(worker, {"task": "health"})["output"]["models"]:
        reasons |= model["stood_down"]
    return reasons


@pytest.fixture(scope="session")
def plain(warm_worker):
    """The picture by a sound worker, drawn before anything fails."""
    return drawn(warm_worker)["image"]


# One component by its library


@pytest.mark.parametrize("call", ["diffusers_model", "transformers_model"])
def test_a_reader_that_fails_gives_way_to_the_library(cold_worker, plain, failing, capsys, call):
    failing(assembly, call, ERRORS["disk"])
    worker = cold_worker()
    output = drawn(worker)
    assert output["image"] == plain
    names = ["reader/transformer", "reader/vae"] if call == "diffusers_model" else ["reader/text_encoder"]
    assert sorted(stood_down(worker)) == names == sorted(output["metadata"]["stood_down"])
    assert all(reason.startswith("OSError") for reason in stood_down(worker).values())
    assert "/srv/models" not in json.dumps(run(worker, {"task": "health"}))
    assert drawn(worker)["image"] == output["image"]
    assert capsys.readouterr().out.count("is read by its library from now on") == len(names)


def test_a_read_that_fails_in_a_thread_gives_way_too(cold_worker, plain, failing, capsys):
    failing(staging.PieceReader, "read", RuntimeError("CUDA error: invalid argument"))
    worker = cold_worker()
    assert drawn(worker)["image"] == plain
    log = capsys.readouterr().out
    assert log.count("Traceback") <= 2 * 3 and len(log) < 30_000  # three components, whatever their tensors
    assert set(stood_down(worker)) == {"reader/transformer", "reader/vae", "reader/text_encoder"}


def test_damage_is_no_failure_of_the_reader(cold_worker, failing):
    failing(assembly, "diffusers_model", LoadError("transformer/model.safetensors is corrupt: it is cut off"))
    worker = cold_worker(QWEN_FALLBACK="forbid")
    assert run(worker, SMALL)["error"] == "model_unavailable: transformer/model.safetensors is corrupt: it is cut off"


# Another plan


def test_a_table_that_fails_is_done_without(cold_worker, failing):
    worker = cold_worker(QWEN_PRECISION="bf16")
    plan = dataclasses.replace(worker.pipelines.place("generate"), table=True)
    place_by(worker, plan)
    failing(modulation_rows, "build", ERRORS["strides"])
    output = drawn(worker)
    assert output["metadata"]["stood_down"] == ["table"]
    assert stood_down(worker)["table"].endswith(" while loading modulation")
    loaded = worker.pipelines.loaded[worker.settings.QWEN_IMAGE_MODEL]
    assert loaded.table is None and not loaded.plan.table
    assert drawn(worker)["image"] == output["image"]


def test_a_quantization_that_fails_is_done_without_also_where_it_was_asked_for(cold_worker, failing):
    failing(quantization, "weight_quantizer", ERRORS["torchao"])
    failing(quantization, "configuration", ERRORS["torchao"])
    worker = cold_worker(QWEN_PRECISION="int8")
    output = drawn(worker)
    assert {"int8", "reader/transformer"} <= set(stood_down(worker))
    assert worker.pipelines.loaded[worker.settings.QWEN_IMAGE_MODEL].plan.precision is Precision.FP32
    assert drawn(worker)["image"] == output["image"]


def test_placement_leaves_out_precisions_that_failed():
    asked = placement.plan([GENERATE], card(24, (8, 9)))
    assert asked.precision is Precision.FP8
    without = placement.plan([GENERATE], card(24, (8, 9)), without=frozenset({Precision.FP8}))
    assert without.precision is Precision.NF4
    everything = frozenset(Precision)
    with pytest.raises(LoadError, match="in no layout that works here"):
        placement.plan([GENERATE], card(24, (8, 9)), without=everything)


def test_after_an_out_of_memory_the_next_plan_is_smaller_and_the_last_one_says_so(cold_worker, monkeypatch):
    """By the free memory that CUDA tells then, and not by the plan that was made before."""
    worker = cold_worker()
    pipelines, model = worker.pipelines, worker.settings.QWEN_IMAGE_MODEL
    pipelines.planner.machine = lambda: Machine(Gpu("a card", (8, 9), round(80 * GB), round(80 * GB)), 10**12, 10**12)
    free = [60 * GB]
    monkeypatch.setattr("qwen_worker.memory.card.room_bytes", lambda beside_others: round(free[0]) if plans else None)
    monkeypatch.setattr("qwen_worker.memory.cuda.release_pinned_buffers", lambda: None)
    monkeypatch.setattr(pipelines, "find_prepared", lambda *_: (None, "none"))
    monkeypatch.setattr(pipelines, "shared_components", lambda *_: {})
    plans = []

    def build(model, checkpoint, plan, *_):
        plans.append(plan)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(pipelines.builder, "build", build)
    monkeypatch.setattr(pipelines.builder, "give_back", lambda device: None)
    with pytest.raises(LoadError) as caught:
        pipelines.load("generate")
    # As they were planned: of an edit, until generate is planned alone.
    peaks = [plan.peak_bytes(1024, 1024, int(len(plan.models) > 1), tiled=True) for plan in plans]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks) >= 1
    assert all(plan.limit_bytes < 60 * GB for plan in plans[1:])
    assert caught.value.transient and "without room after OutOfMemoryError: CUDA out of memory" in caught.value.reason
    assert pipelines.planner.stood_down[model].max_bytes < peaks[-1]


# The last rung


def test_the_last_rung_says_the_reason_and_is_tried_again_after_a_growing_pause(cold_worker, failing, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("qwen_worker.loading.loader.time.monotonic", lambda: now[0])
    worker = cold_worker(QWEN_FALLBACK="forbid", QWEN_LOAD_RETRY_SECONDS=60)
    calls = failing(components, "load_by_library", ERRORS["cudnn"])
    failing(assembly, "diffusers_model", ERRORS["strides"])
    for pause in (60, 120, 240):
        body = run(worker, SMALL)
        assert body["error"].startswith("model_unavailable: RuntimeError: cuDNN Frontend error")
        assert "tried without reader/transformer after AssertionError: expected size" in body["error"]
        assert "refresh_worker" not in body.get("output", {}) and "stopPod" not in body
        count = len(calls)
        now[0] += pause - 1
        run(worker, SMALL)
        assert len(calls) == count
        now[0] += 2
    monkeypatch.undo()
    # The machine's own clock may be behind: it counts from the machine's start.
    monkeypatch.setattr("qwen_worker.loading.loader.time.monotonic", lambda: now[0])
    assert drawn(worker)


def test_under_allow_the_stand_in_says_why(cold_worker, failing):
    failing(components, "load_by_library", ERRORS["disk"])
    failing(assembly, "diffusers_model", ERRORS["disk"])
    facts = run(cold_worker(QWEN_FALLBACK="allow"), SMALL)["output"]["metadata"]
    assert facts["backend"] == "pil-fallback" and "Input/output error" in facts["fallback_reason"]
    assert "/srv" not in facts["fallback_reason"]


# What a failed try leaves


def modules_alive():
    """The modules of diffusers' models that something still holds."""
    gc.collect()
    # By the type itself: proxies among the objects would answer `isinstance`, and warn.
    alive = (one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module))
    return [one for one in alive if type(one).__module__.startswith("diffusers")]


@pytest.mark.parametrize("seam", ["thread", "table", "adapters"])
def test_nothing_of_a_failed_try_stays(cold_worker, failing, seam):
    """Also where the reader's failure holds the frame that holds the reader."""
    worker = cold_worker(QWEN_FALLBACK="forbid", QWEN_LOAD_RETRY_SECONDS=0)
    place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), swapped=True))
    before, error = modules_alive(), ERRORS["cudnn"]
    seams = {
        "thread": [(staging.PieceReader, "read"), (components, "load_by_library")],
        "table": [(builder, "require_tokenizer")],
        "adapters": [(pipelines, "adapters_of")],
    }
    calls = [failing(owner, name, error) for owner, name in seams[seam]]
    assert run(worker, SMALL)["error"].startswith("model_unavailable: ")
    ids = set(map(id, before))
    assert all(calls) and not [one for one in modules_alive() if id(one) not in ids]
    swap = worker.pipelines.builder.swap
    assert swap is None or (swap.homes == {} and swap.modules == {} and swap.active is None)


def test_a_model_that_does_not_take_turns_is_drawn_beside_one_that_did(cold_worker, scene, capsys):
    """As after a plan in which models take turns has failed, and a next one without turns has come."""
    worker = cold_worker(QWEN_FALLBACK="forbid")
    plan = worker.pipelines.place("generate")
    place_by(worker, dataclasses.replace(plan, swapped=True))
    drawn(worker)
    place_by(worker, plan)
    for _ in range(2):
        drawn(worker, image=as_text(scene), draw_size="asked")
        drawn(worker)
    assert "Traceback" not in capsys.readouterr().out


def test_a_failure_is_put_into_words_and_let_go():
    class Tensor:
        pass

    gone = []

    def fail():
        held = Tensor()
        gone.append(weakref.ref(held))
        raise RuntimeError("no kernel image at /srv/models/x.safetensors\nsecond line")

    failure = failures.attempt(fail)
    assert failure == failures.Failure("RuntimeError: no kernel image at x.safetensors") and gone[0]() is None
    assert describe_error(KeyError()) == "KeyError"
    told = describe_error(OSError(28, "No space left", "/mnt/a/b.bin"))
    assert told == "OSError: [Errno 28] No space left: 'b.bin'"


# Speed-ups


@pytest.fixture
def faster(cold_worker):
    return lambda **settings: cold_worker(QWEN_SPEEDUPS="rotary,guidance,compile", **settings)


def test_a_warm_up_that_fails_costs_no_other_speed_up(faster, failing):
    failing(compiled.CompiledBlocks, "warm", ERRORS["ptxas"])
    worker = faster()
    drawn(worker)
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["speedups"]["compile"].startswith("RuntimeError: PTXAS") and model["speedups"]["rotary"] == "on"


def test_compiled_blocks_that_fail_when_they_run_are_left_and_the_job_is_drawn_once_more(plain, faster, monkeypatch):
    def raise_error(block, **inputs):
        raise fresh(ERRORS["launch"])

    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: raise_error)
    monkeypatch.setattr(compiled.CompiledBlocks, "warm", lambda *_: None)
    worker = faster()
    output = drawn(worker)
    assert output["image"] == plain  # stock's code, to the byte
    assert set(stood_down(worker)) == {"compile", "rotary", "guidance"} == set(output["metadata"]["stood_down"])
    assert drawn(worker)["image"] == output["image"]


def test_only_the_second_failure_is_internal(faster, failing, monkeypatch):
    monkeypatch.setattr(compiled.CompiledBlocks, "warm", lambda *_: None)
    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: block_class.forward)
    worker = faster()
    worker.pipelines.load("generate")
    calls = failing(inference, "draw_pictures", ERRORS["cudnn"])
    body = run(worker, SMALL, "twice")
    assert body == {"error": "internal: twice", "output": {"success": False}} and len(calls) == 2
    run(worker, SMALL, "once")
    assert len(calls) == 3  # nothing is left to turn off
    monkeypatch.undo()
    drawn(worker)


def test_short_of_memory_passes_are_parted_first_and_tiles_come_second(faster, monkeypatch):
    monkeypatch.setattr(compiled.CompiledBlocks, "warm", lambda *_: None)
    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: block_class.forward)
    worker = faster()
    loaded, tried = worker.pipelines.load("generate"), []
    real, fits = inference.draw_pictures, {"apart": False}

    def draw_pictures(pipe, *arguments):
        tried.append(("forward" in vars(pipe.transformer), pipe.vae.use_tiling))
        if not fits["apart"] and tried[-1][0] or fits["apart"] is None and not tried[-1][1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pipe, *arguments)

    monkeypatch.setattr(inference, "draw_pictures", draw_pictures)
    drawn(worker)
    assert tried == [(True, False), (False, False)]
    fits["apart"] = None
    tried.clear()
    drawn(worker)
    assert tried == [(True, False), (False, False), (False, True)]
    tried.clear()
    drawn(worker)  # two jobs in a row were short: the third begins with what was enough
    assert tried == [(False, True)]
    fits["apart"] = True
    tried.clear()
    drawn(worker, width=288)
    assert tried == [(True, False)] and not loaded.pipe.vae.use_tiling


# The self-check


@pytest.fixture
def finding(monkeypatch):
    """finding(name, distance, reason): what the self-check says, where the subject has what it names."""
    from qwen_worker.loading import self_check

    def plant(name, distance=1.0, reason=""):
        def check(subject, settings, card_name):
            there = name in ("lora", "compile", "rotary", "guidance") or name == "table" and subject.table
            there = there or name in subject.speed.states and subject.speed.has(name)
            there = there or name in subject.plan.savings or name == subject.plan.precision.value
            return [self_check.Finding(name, distance, 0.01, 0.0, reason)] if there else []

        monkeypatch.setattr(self_check, "check", check)

    return plant


@pytest.mark.parametrize("name", ["table", "conv2d", "bf16"])
@pytest.mark.parametrize("distance", [0.5, float("nan")])
def test_what_the_self_check_finds_wrong_stands_down_and_stays_so_at_the_next_start(
    cold_worker, finding, name, distance
):
    worker = cold_worker(QWEN_PRECISION="bf16")
    place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), table=True))
    finding(name, distance)
    assert drawn(worker)["metadata"]["stood_down"] == [name]
    assert "ArithmeticError: " + name in stood_down(worker)[name]
    again = cold_worker(QWEN_PRECISION="bf16")
    assert drawn(again)["metadata"]["stood_down"] == [name]
    assert stood_down(again)[name].startswith("an earlier start met ")


@pytest.mark.parametrize(("name", "off"), [("guidance", ["guidance"]), ("rotary", ["compile", "rotary"])])
@pytest.mark.parametrize("reason", ["", "RuntimeError: no valid execution plans"])
def test_a_speed_up_that_the_self_check_finds_wrong_is_off_at_once(
    faster, finding, monkeypatch, plain, name, off, reason
):
    monkeypatch.setattr(compiled.CompiledBlocks, "warm", lambda *_: None)
    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: block_class.forward)
    finding(name, 0.5, reason)
    worker = faster()
    assert sorted(drawn(worker)["metadata"]["stood_down"]) == off
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["self_check"][0]["name"] == name and not model["self_check"][0]["passed"]


@pytest.fixture
def gelu_on_a_cpu(monkeypatch):
    """Has the speed-up `gelu` chosen where it would be on a card; a CPU computes its layers as before."""
    decide = speedups.decide
    monkeypatch.setattr(speedups, "decide", lambda *given: decide(*given) | {Speedup.GELU: speedups.ON})


@pytest.fixture
def warmed(monkeypatch):
    """The classes of the layers that widen, at each warm-up of compiled blocks."""
    found = []

    def warm(blocks, table, references, passes, compare=None):
        found.append({type(layer).__name__ for layer in gelu.first_layers(blocks.transformer)})

    monkeypatch.setattr(compiled.CompiledBlocks, "warm", warm)
    monkeypatch.setattr(compiled, "compiled_forward", lambda block_class: block_class.forward)
    return found


@pytest.mark.parametrize("reason", ["", "RuntimeError: not enough resources"])
def test_a_wrong_gelu_costs_no_compiled_blocks_now_or_at_the_next_start(faster, finding, gelu_on_a_cpu, warmed, reason):
    """The blocks are compiled once more without it; the next start leaves it out, unless it could not be compared."""
    finding("gelu", 0.5, reason)
    worker = faster()
    assert drawn(worker)["metadata"]["stood_down"] == ["gelu"] and warmed == [{"ActivatedProduct"}, {"GELU"}]
    for each, words in ((worker, "gelu"), (faster(), "gelu" if reason else "an earlier start met gelu is 0.5 from")):
        assert drawn(each)["metadata"]["stood_down"] == ["gelu"]
        (model,) = run(each, {"task": "health"})["output"]["models"]
        assert model["speedups"]["compile"] == "on" and model["speedups"]["gelu"].startswith(words)
    assert warmed[2:] == ([{"ActivatedProduct"}, {"GELU"}] if reason else [{"GELU"}])


def test_blocks_that_do_not_compile_once_more_are_drawn_as_before(faster, finding, gelu_on_a_cpu, warmed, monkeypatch):
    again = compiled.CompiledBlocks.warm

    def warm(blocks, *given):
        again(blocks, *given)
        if len(warmed) > 1:
            raise fresh(ERRORS["ptxas"])

    monkeypatch.setattr(compiled.CompiledBlocks, "warm", warm)
    finding("gelu", 0.5)
    worker = faster()
    assert sorted(drawn(worker)["metadata"]["stood_down"]) == ["compile", "gelu"] and len(warmed) == 2


def test_an_attention_that_computes_wrong_is_out_of_the_blocks_of_the_next_start(faster, finding, warmed, monkeypatch):
    decide = speedups.decide
    monkeypatch.setattr(speedups, "decide", lambda *given: decide(*given) | {Speedup.ATTENTION: speedups.ON})
    finding("attention", 0.5)
    assert sorted(drawn(faster())["metadata"]["stood_down"]) == ["attention", "compile"]
    assert drawn(faster())["metadata"]["stood_down"] == ["attention"] and len(warmed) == 2


def test_a_lora_that_the_self_check_finds_wrong_is_said_and_the_model_stays(cold_worker, finding):
    finding("lora")
    worker = cold_worker()
    assert "stood_down" not in drawn(worker)["metadata"]
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert [each["passed"] for each in model["self_check"]] == [False]


# Notes for the next start


@pytest.fixture
def spoiled(monkeypatch):
    """Has CUDA's context be spoiled, as far as the worker can ask."""

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def spoil():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        monkeypatch.setattr("qwen_worker.memory.card.room_bytes", lambda beside_others: None)

    return spoil


ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")


def test_what_nothing_explains_asks_once_until_a_picture_is_drawn(tmp_path):
    notes = CrashNotes(tmp_path, lambda: "card")
    assert notes.blame("a", []).refresh_worker
    again = CrashNotes(tmp_path, lambda: "card")
    assert not again.blame("a", []).refresh_worker
    assert again.blame("b", ["table"]).refresh_worker
    later = CrashNotes(tmp_path, lambda: "card")
    assert later.read() == {"reasons": {"table": "b"}} and later.blame("c", []).refresh_worker
    later.clear_unexplained()
    assert CrashNotes(tmp_path, lambda: "card").blame("c", []).refresh_worker
    assert CrashNotes(tmp_path, lambda: "another card").read() == {}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"reasons": {"table": 1}}', '{"reasons": []}', "\x00" * 200_000])
def test_a_damaged_note_is_ignored(tmp_path, content, capsys):
    (tmp_path / "card.crash.json").write_text(content)
    assert CrashNotes(tmp_path, lambda: "card").read() == {} and "is ignored" in capsys.readouterr().out


def test_a_note_that_cannot_be_written_is_no_failure(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert CrashNotes(tmp_path / "file" / "folder", lambda: "card").blame("a", ["table"]).refresh_worker
    assert "cannot be written" in capsys.readouterr().out


# Pinned memory


class Refused(RuntimeError):
    error_code = 2


@pytest.fixture
def unpinnable(monkeypatch):
    """No host memory can be pinned, as torch says it: an AcceleratorError of code 2."""
    real, refusals = torch.empty, []

    def empty(*arguments, pin_memory=False, **options):
        if pin_memory:
            refusals.append(arguments)
            raise Refused("CUDA error: out of memory")
        return real(*arguments, **options)

    def pin_memory(tensor):
        refusals.append(tensor)
        raise Refused("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(host_memory, "pinning", host_memory.Pinning())
    return refusals


def test_memory_that_cannot_be_pinned_is_pageable_and_asked_for_once(unpinnable, capsys):
    pinning = host_memory.pinning
    assert pinning.empty((3, 4), torch.uint8).shape == (3, 4) and pinning.empty((2,), torch.int8).dtype == torch.int8
    tensor = torch.arange(4)
    assert pinning.pin(tensor) is tensor and len(unpinnable) == 1
    assert pinning.refusal == "Refused: CUDA error: out of memory"
    assert capsys.readouterr().out.count("is not pinned from now on") == 1
    pinning.resume()
    assert pinning.pin(tensor) is tensor and len(unpinnable) == 2


def test_another_failure_of_pinning_is_no_lack_of_memory(monkeypatch):
    def pin_memory(tensor):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    with pytest.raises(RuntimeError, match="illegal"):
        host_memory.Pinning().pin(torch.arange(4))


def test_a_pin_that_fails_spoils_nothing(spoiled):
    from qwen_worker.memory import cuda

    spoiled()
    assert not cuda.has_spoiled(Refused("CUDA error: out of memory")) and is_out_of_memory(Refused("x"))
    assert cuda.has_spoiled(ILLEGAL) and not cuda.has_spoiled(ValueError("x"))


# Turns


def test_a_transformer_that_finds_no_room_leaves_the_others_theirs(monkeypatch):
    from qwen_worker.model.residency import Home, Swap

    swap = Swap("cpu")
    for name in ("a", "b"):
        swap.add(name, torch.nn.Linear(4, 4))
    load, fails = Home.load, [True]

    def short(home, device):
        if fails[0] and home is swap.homes["a"][1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(home, device)

    monkeypatch.setattr(Home, "load", short)
    with pytest.raises(torch.OutOfMemoryError):
        swap.activate("a")
    assert swap.active is None
    assert all(
        home.owner.data is not None and home.owner.data_ptr() == home.tensor.data_ptr() for home in swap.homes["a"]
    )
    swap.activate("b")
    fails[0] = False
    swap.activate("a")
    assert swap.active == "a"


def test_a_swap_that_is_short_once_is_tried_again_and_then_refused_without_a_fresh_worker(cold_worker, failing):
    from qwen_worker.model.residency import Swap

    worker = cold_worker()
    place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), swapped=True))
    drawn(worker)
    worker.pipelines.builder.swap.clear()
    calls = failing(Swap, "activate", torch.OutOfMemoryError("CUDA out of memory"), times=1)
    drawn(worker)
    assert len(calls) == 2
    failing(Swap, "activate", torch.OutOfMemoryError("CUDA out of memory"), times=2)
    body = run(worker, SMALL)
    assert body["error"].startswith("out_of_memory: ") and "stopPod" not in body
    drawn(worker)


def test_what_several_models_do_without_is_what_one_of_them_does(tmp_path):
    from qwen_worker.loading.stand_down import union

    both = union([StoodDown({"table": "a"}, 5), StoodDown({"fp8": "b"}), StoodDown({}, 3)])
    assert both.savings(frozenset(Saving)) == frozenset(Saving) - {Saving.TABLE}
    assert both.layouts() == {"fp8"} and both.max_bytes == 3
    assert Speedup.COMPILE.value not in both.reasons
