"""How the second card's process is loaded: shared rows, prepared checkpoints, swapped transformers, and what fails."""

import asyncio
import dataclasses
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from qwen_tiny import LORA
from qwen_worker.errors import LoadError
from qwen_worker.loading import second_card
from qwen_worker.ranks import link

from ..conftest import place_by, run
from ..worker.test_stops import stopped
from .conftest import SMALL, answered, pictures_in

SHORT = {**SMALL, "num_inference_steps": 2}


@pytest.fixture
def pair(warm_workers):
    """pair(**settings): by the number of cards, a worker that has loaded nothing."""
    made = []

    def both(**settings):
        found = {gpus: warm_workers(QWEN_GPUS=gpus, QWEN_FALLBACK="forbid", **settings) for gpus in ("1", "2")}
        made.extend(found.values())
        return found

    yield both
    for worker in made:
        worker.pipelines.second_card.close()


@pytest.fixture
def second_rank_runs(monkeypatch):
    """second_rank_runs(program): the second card's process runs this program, which plants a fault and then serves."""
    return lambda program: monkeypatch.setattr(second_card, "COMMAND", (sys.executable, "-c", program))


def watched(worker):
    """The worker, and a list that grows where the end of its second card's process would have ended it."""
    ended = []
    worker.pipelines.second_card.end = ended.append
    return worker, ended


def test_the_modulation_table_s_rows_are_in_memory_that_both_processes_have(pair, lora):
    drawn = {}
    for gpus, worker in pair(QWEN_PRECISION="bf16", QWEN_LORA_ROOTS=(lora,)).items():
        place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), table=True))
        loras = [{"path": "modulation.safetensors"}]
        drawn[gpus] = [pictures_in(answered(worker, job)) for job in (SHORT, {**SHORT, "loras": loras}, SHORT)]
    second = worker.pipelines.second_card
    model = str(worker.settings.QWEN_IMAGE_MODEL)
    rows = worker.pipelines.builder.shared_rows[model]
    mapped = re.findall(r"/memfd:modulation table", Path(f"/proc/{second.process.pid}/maps").read_text())
    assert second.report(model)["plan"].endswith("modulation table shared")
    assert drawn["1"] == drawn["2"] and drawn["1"][0] != drawn["1"][1]
    assert len(mapped) == 1
    assert worker.pipelines.get("generate").table.source.rows.data_ptr() == rows.tensor.data_ptr()


def test_a_prepared_checkpoint_is_read_by_both(pair, tiny, tmp_path):
    from qwen_worker import prepare
    from qwen_worker.loading import prepared

    prepare.main([str(tiny / "generate"), "--no-table", "--output", str(tmp_path)])
    assert any((tmp_path / prepared.FOLDER).iterdir())
    root = {"QWEN_MODEL_ROOTS": (tmp_path,), "QWEN_PRECISION": "bf16", "QWEN_TASKS": {"generate"}}
    drawn = {}
    for gpus, worker in pair(**root).items():
        drawn[gpus] = answered(worker, SHORT)
    assert worker.pipelines.get("generate").prepared == "tiny-qwen-image--generate.bf16-vision"
    assert drawn["1"]["image"] == drawn["2"]["image"] and drawn["2"]["metadata"]["gpus"] == 2


def test_transformers_that_take_turns_do_so_on_both(pair, scene):
    """Host memory stands for the card's; what is moved is the same."""
    from ..conftest import as_text

    edit = {**SHORT, "prompt": "a green disc", "image": as_text(scene), "draw_size": "asked"}
    drawn = {}
    for gpus, worker in pair().items():
        place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), swapped=True))
        worker.pipelines.planner.plans |= dict.fromkeys(
            [worker.settings.QWEN_EDIT_MODEL], worker.pipelines.planner.plans[worker.settings.QWEN_IMAGE_MODEL]
        )
        drawn[gpus] = [answered(worker, job) for job in (SHORT, edit, SHORT)]
    assert [one["image"] for one in drawn["1"]] == [one["image"] for one in drawn["2"]]
    assert {one["metadata"]["gpus"] for one in drawn["2"]} == {2}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit(3)", "it has ended"),
        ("import time; time.sleep(1); raise SystemExit", "it has ended"),
    ],
)
def test_a_process_that_does_not_come_up_leaves_the_first_card_alone(pair, second_rank_runs, capsys, program, reason):
    second_rank_runs(program)
    worker = pair()["2"]
    assert answered(worker, SHORT)["metadata"]["gpus"] == 1
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["second_card"] == {"state": f"the second card's process: {reason}"}
    assert "one card draws alone: the second card's process" in capsys.readouterr().out
    assert answered(worker, SHORT)["metadata"]["gpus"] == 1  # the next job is served


def test_two_processes_find_out_whether_the_cards_reach_each_other(monkeypatch):
    assert link.ATTEMPTS[0] == {}
    monkeypatch.setattr(link, "ATTEMPTS", ({"GLOO_SOCKET_IFNAME": "none0"}, {"NCCL_P2P_DISABLE": "1"}))
    assert link.working_environment("cpu") == {"NCCL_P2P_DISABLE": "1"}
    monkeypatch.setattr(link, "ATTEMPTS", ({"GLOO_SOCKET_IFNAME": "none0"},))
    monkeypatch.setattr(link, "SHARED_BYTES", 10**18)
    with pytest.raises(
        LoadError, match=r"the two cards do not reach each other: .+; /dev/shm has \d+ MB free, and NCCL"
    ):
        link.working_environment("cpu")


def test_cards_that_hang_are_given_up(monkeypatch):
    hang = (sys.executable, "-c", "import time; time.sleep(600)")
    processes, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **named: processes.append(start(*given, **named)) or processes[-1]
    )
    assert link.try_link({}, "cpu", 0.5, hang) == "nothing has arrived within 0 seconds"
    assert len(processes) == 2 and all(process.poll() is not None for process in processes)


@pytest.mark.parametrize(("named", "expected"), [(None, "1,0"), ("2,5,1", "5,2,1"), ("GPU-a,GPU-b", "GPU-b,GPU-a")])
def test_the_second_process_has_the_second_card_as_its_first(monkeypatch, named, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert link.second_device() == {"CUDA_VISIBLE_DEVICES": expected}


def test_an_error_costs_the_second_card_and_not_the_job(pair):
    worker = pair()["2"]
    picture = answered(worker, SHORT)["image"]
    transformer, calls = worker.pipelines.load("generate").pipe.transformer, []

    def fail_once(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("a planted error")

    hook = transformer.register_forward_pre_hook(fail_once)
    again = answered(worker, SHORT)
    hook.remove()
    assert again["image"] == picture and again["metadata"]["gpus"] == 1
    (model, *_) = run(worker, {"task": "health"})["output"]["models"]
    assert model["second_card"] == {"state": "RuntimeError: a planted error"}
    assert worker.pipelines.second_card.process is None


NO_ROOM_FOR_LORAS = """
import torch
from qwen_worker import second_rank
begin = second_rank.SecondRank.begin
def without_room(self, setup):
    if setup.loras:
        raise torch.OutOfMemoryError("CUDA out of memory")
    begin(self, setup)
second_rank.SecondRank.begin = without_room
second_rank.main()
"""


def test_a_lora_that_the_second_card_has_no_room_for_ends_its_job_in_a_sentence(pair, lora, second_rank_runs):
    second_rank_runs(NO_ROOM_FOR_LORAS)
    worker = pair(QWEN_LORA_ROOTS=(lora,))["2"]
    error = run(worker, {**SHORT, "loras": [{"path": "plain.safetensors"}]})["error"]
    assert error.startswith("out_of_memory: 256x256 did not fit beside tiny-qwen-image/generate on the second card (")
    assert answered(worker, SHORT)["metadata"]["gpus"] == 2


WITHOUT_ROOM_FOR_TURNS = """
import torch
from qwen_worker import second_rank
activate, calls = second_rank.SecondRank.activate, []
def without_room(self, model):
    calls.append(1)
    if len(calls) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    activate(self, model)
second_rank.SecondRank.activate = without_room
second_rank.main()
"""


def test_a_transformer_that_cannot_be_brought_to_the_second_card_costs_that_and_no_job(pair, scene, second_rank_runs):
    from ..conftest import as_text

    second_rank_runs(WITHOUT_ROOM_FOR_TURNS)
    worker = pair()["2"]
    place_by(worker, dataclasses.replace(worker.pipelines.place("generate"), swapped=True))
    plans = worker.pipelines.planner.plans
    plans[worker.settings.QWEN_EDIT_MODEL] = plans[worker.settings.QWEN_IMAGE_MODEL]
    edit = {**SHORT, "prompt": "a green disc", "image": as_text(scene), "draw_size": "asked"}
    assert [answered(worker, job)["metadata"]["gpus"] for job in (SHORT, edit, SHORT)] == [2, 1, 1]
    state = run(worker, {"task": "health"})["output"]["models"][0]["second_card"]["state"]
    assert re.match("edit could not be brought to the second card: .*CUDA out of memory", state), state


SLOW_RELEASE = """
import pathlib, time
from qwen_worker import second_rank
release = second_rank.SecondRank.release
def slowly(self, model):
    time.sleep(1)
    release(self, model)
    pathlib.Path({file!r}).touch()
second_rank.SecondRank.release = slowly
second_rank.main()
"""


def test_a_model_is_gone_from_both_cards_before_another_is_planned(pair, monkeypatch, tmp_path, second_rank_runs):
    from qwen_worker.memory import cuda

    gone, seen, release = tmp_path / "gone", [], cuda.release_unused
    second_rank_runs(SLOW_RELEASE.format(file=str(gone)))
    worker = pair()["2"]
    assert answered(worker, SHORT)["metadata"]["gpus"] == 2
    transformer = weakref.ref(worker.pipelines.get("generate").pipe.transformer)
    monkeypatch.setattr(cuda, "release_unused", lambda device: release(device) or seen.append(transformer() is None))
    worker.pipelines.unload_all()
    assert gone.exists() and seen == [True]
    assert answered(worker, SHORT)["metadata"]["gpus"] == 2


def test_a_first_card_without_room_for_a_prediction_leaves_nobody_waiting(pair, monkeypatch):
    import torch

    from qwen_worker.ranks import group

    (worker, ended), asked = watched(pair()["2"]), []
    picture, empty = answered(worker, SHORT)["image"], group.TensorShape.empty

    def without_room(self, device):
        asked.append(self)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(self, device)

    monkeypatch.setattr(group.TensorShape, "empty", without_room)
    again = answered(worker, SHORT)
    assert again["image"] == picture and again["metadata"]["gpus"] == 2
    assert len(asked) > 1 and not ended


def test_a_transformer_has_gone_when_the_second_card_gives_memory_back(monkeypatch):
    """The next plan is made of what the driver says is free, and not of what torch keeps for nobody."""
    import torch

    from qwen_worker.memory import cuda
    from qwen_worker.second_rank import LoadedTransformer, SecondRank

    rank, gone = SecondRank(), []
    rank.models["model"] = LoadedTransformer(None, None, torch.nn.Linear(2, 2))
    transformer = weakref.ref(rank.models["model"].pipe)
    monkeypatch.setattr(cuda, "release_unused", lambda device: gone.append(transformer() is None))
    rank.release("model")
    assert gone == [True]


FAILS_TO_COMPILE = {
    "while it loads": """
def compile_loras(speed, wanted, *_):
    speed.stand_down_loras(f"no kernel for {wanted.name}")
    return speed
second_rank.speedups.compile_loras = compile_loras
""",
    "in a job": """
compute = second_rank.SecondRank.compute
def fail(self, *arguments):
    self.at_work.speed.stand_down_loras("no kernel for PRESET")
    return compute(self, *arguments)
second_rank.SecondRank.compute = fail
""",
}


@pytest.mark.parametrize("planted", FAILS_TO_COMPILE.values(), ids=FAILS_TO_COMPILE)
def test_what_does_not_compile_on_the_second_card_is_drawn_uncompiled_on_both(pair, tiny, second_rank_runs, planted):
    """The second card compiles for the LoRA of preset `fast` as the first does, while it loads."""
    program = f"from qwen_worker import second_rank{planted}second_rank.main()"
    second_rank_runs(program)
    worker = pair(QWEN_IMAGE_FAST_LORA=str(tiny / LORA), QWEN_FAST_STEPS=4)["2"]
    assert answered(worker, SHORT)["metadata"]["gpus"] == 2
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["stood_down"] == {"compiled LoRAs": "on the second card: no kernel for PRESET"}


def test_a_stop_while_the_second_card_loads_is_passed_on_and_the_load_serves_the_next_job(pair, gate, monkeypatch):
    loading, go_on, await_load = gate(), gate(), second_card.SecondCard.await_load

    def slow(self, *arguments):
        loading.set()
        go_on.wait()
        return await_load(self, *arguments)

    monkeypatch.setattr(second_card.SecondCard, "await_load", slow)
    worker = pair()["2"]
    asyncio.run(stopped(worker, SHORT, loading))
    go_on.set()
    assert answered(worker, SHORT)["metadata"]["gpus"] == 2


SPOILED_ON_THE_CARD = """
from qwen_worker import second_rank
def fail(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
second_rank.cuda.await_kernels = fail
second_rank.main()
"""


def test_a_pass_that_fails_after_the_second_card_was_asked_for_it_costs_that_card_and_no_worker(pair, second_rank_runs):
    """A card is asked for kernels, and fails at them later."""
    second_rank_runs(SPOILED_ON_THE_CARD)
    worker, ended = watched(pair()["2"])
    assert answered(worker, SHORT)["metadata"]["gpus"] == 1 and not ended
    state = worker.pipelines.report()[0]["second_card"]["state"]
    assert state.endswith("CUDA error: an illegal memory access was encountered")


NO_ROOM_FOR_INPUTS = """
import torch
from qwen_worker import second_rank
from qwen_worker.ranks import group
empty, calls = group.TensorShape.empty, []
def without_room(self, device):
    calls.append(1)
    if len(calls) == 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return empty(self, device)
group.TensorShape.empty = without_room
second_rank.main()
"""


def test_a_second_card_without_room_for_a_pass_s_inputs_has_its_job_tried_again(pair, second_rank_runs):
    second_rank_runs(NO_ROOM_FOR_INPUTS)
    worker, ended = watched(pair()["2"])
    first, again = (answered(worker, SHORT) for _ in range(2))
    assert first["image"] == again["image"] and first["metadata"]["gpus"] == again["metadata"]["gpus"] == 2
    loaded = worker.pipelines.get("generate")
    assert not ended and loaded.active_second_card
