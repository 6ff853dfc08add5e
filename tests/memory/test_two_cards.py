"""Plans for two cards: the table of the documentation, and the refusals with their figures."""

import dataclasses
import re

import pytest

from qwen_deploy.cards import describe_layout
from qwen_worker.checkpoints import checkpoint as checkpoints
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.loading.second_card import SecondCard
from qwen_worker.memory import nvml, placement, two_cards
from qwen_worker.memory.machine import Gpu, Machine
from qwen_worker.settings import Misconfigured, Settings, read_settings

from ..conftest import ROOT

GB = 1_000_000_000
NAMES = {"generate": "Qwen/Qwen-Image", "edit": "Qwen/Qwen-Image-Edit"}
CAPABILITY = {24: (8, 9), 48: (8, 9), 80: (9, 0)}  # of the cards that have so many GB
ROW = re.compile(r"^\| 2 x (\d+) GB \| ([\w, ]+) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def card(gb, free_gb=None, name="NVIDIA L40S"):
    return Gpu(name, CAPABILITY[gb], gb * GB, round((gb if free_gb is None else free_gb) * GB))


def machine(gb, ram_gb=500):
    return Machine(card(gb), ram_gb * GB, ram_gb * GB)


def plan_of(gb, *tasks, ram_gb=500, **options):
    released = [checkpoints.released(NAMES[task]) for task in tasks]
    models = [as_model(one, released[:number]) for number, one in enumerate(released)]
    return placement.plan(models, machine(gb, ram_gb), **options)


def test_the_table_of_layouts_is_what_is_planned():
    rows = ROW.findall((ROOT / "docs/two-cards.md").read_text())
    assert len(rows) == 9
    for gb, tasks, layout, second_gb, pinned_gb in rows:
        one = plan_of(int(gb), *tasks.split(", "))
        both = two_cards.on_two_cards(one, machine(int(gb)), card(int(gb)))
        found = (
            describe_layout(both),
            round(two_cards.second_card_bytes(both) / GB, 1),
            round(both.pinned_bytes / GB, 1),
        )
        assert found == (layout, float(second_gb), float(pinned_gb)), (gb, tasks)
        assert dataclasses.replace(both, cards=1, spare_bytes=one.spare_bytes) == one  # the first card's own plan


def test_the_table_of_rows_counts_once_and_what_each_process_has_twice():
    swapped = plan_of(48, "generate", "edit")
    both = two_cards.on_two_cards(swapped, machine(48), card(48))
    waiting = sum(map(swapped.transformer_bytes, swapped.models))
    assert both.pinned_bytes - swapped.pinned_bytes == waiting
    tabled = plan_of(80, "generate", "edit")
    assert two_cards.on_two_cards(tabled, machine(80), card(80)).pinned_bytes == tabled.pinned_bytes > 0


def test_the_second_card_has_neither_text_encoder_nor_vae():
    plan = plan_of(80, "generate")
    assert plan.peak_bytes(1024, 1024) - two_cards.second_card_bytes(plan) > plan.text_encoder_bytes(plan.models[0])


@pytest.mark.parametrize(
    ("second", "ram_gb", "options", "words"),
    [
        (None, 500, {}, "this worker has one card that CUDA can use"),
        (card(48, name="NVIDIA A40"), 500, {}, r"the two cards differ: NVIDIA L40S \(48.0 GB\) and NVIDIA A40 \("),
        (card(24), 500, {}, r"NVIDIA L40S \(48.0 GB\) and NVIDIA L40S \(24.0 GB\)"),
        (card(48, free_gb=20), 500, {}, "would need 29.9 GB, and 19.4 GB of its 48.0 GB can be had: something else"),
        (card(48), 500, {"vram_cap_bytes": 25 * GB}, "would need 29.9 GB, and 25.0 GB of its 48.0 GB"),
        (card(48), 100, {}, "two processes would pin 120.1 GB of RAM, and 90.0 GB can be, beside the processes"),
    ],
)  # fmt: skip
def test_a_second_card_that_cannot_be_used_is_refused_with_the_figures(second, ram_gb, options, words):
    with pytest.raises(LoadError, match=words):
        two_cards.on_two_cards(plan_of(48, "generate", "edit"), machine(48, ram_gb), second, **options)


def test_another_architecture_is_drawn_on_one_card():
    released = checkpoints.released("Qwen/Qwen-Image-2.1")
    with pytest.raises(LoadError, match="only transformers of the 20B architecture are drawn on two cards"):
        two_cards.on_two_cards(placement.plan([as_model(released, [])], machine(80)), machine(80), card(80))


def test_the_first_card_draws_by_its_own_plan_where_the_second_is_refused_and_it_is_told(capsys):
    plan = plan_of(48, "generate")
    second = SecondCard(Settings(QWEN_GPUS="2"), second_gpu=lambda: card(48, free_gb=1))
    assert second.extend(plan, machine(48), ["generate"]) is plan
    words = "the second card would need 29.5 GB"
    assert f"one card draws alone: {words}" in capsys.readouterr().out
    assert second.report("generate")["state"].startswith(words)


def test_a_model_that_is_refused_leaves_the_state_of_another_as_it_is():
    plan, cards = plan_of(48, "generate"), [card(48), card(48, free_gb=1), card(48)]
    second = SecondCard(Settings(QWEN_GPUS="2"), second_gpu=lambda: cards.pop(0), try_link=lambda: {})
    assert second.extend(plan, machine(48), ["generate"]).cards == 2
    second.models["generate"] = "bf16"  # as after its load
    assert second.extend(plan, machine(48), ["edit"]) is plan
    states = [second.report(model)["state"] for model in ("generate", "edit", "another")]
    assert states[0] == "on" and states[1].startswith("the second card would need") and states[2] == "not loaded"
    assert second.report("generate")["plan"] == "bf16"
    assert second.extend(plan, machine(48), ["edit"]).cards == 2
    assert second.report("edit") == {"state": "not loaded"}


@pytest.mark.parametrize(
    ("asked", "gpus", "state"), [("auto", None, {"state": "this worker has one card"}), ("1", card(48), None)]
)
def test_one_card_is_planned_for_without_a_word_where_no_second_was_asked_for(asked, gpus, state, capsys):
    plan = plan_of(48, "generate")
    second = SecondCard(Settings(QWEN_GPUS=asked), second_gpu=lambda: gpus)
    assert second.extend(plan, machine(48), ["generate"]) is plan and second.report("generate") == state
    assert not capsys.readouterr().out


def test_auto_takes_a_second_card_that_is_there():
    tried = []
    second = SecondCard(Settings(QWEN_GPUS="auto"), second_gpu=lambda: card(48), try_link=lambda: tried.append(1) or {})
    plans = [second.extend(plan_of(48, "generate"), machine(48), ["generate"]) for _ in range(2)]
    assert [plan.cards for plan in plans] == [2, 2] and tried == [1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LoadError("the two cards do not reach each other"), "the two cards do not reach each other"),
        (
            OSError(11, "Resource temporarily unavailable"),
            "BlockingIOError: [Errno 11] Resource temporarily unavailable",
        ),
        (
            RuntimeError("The server socket has failed to listen"),
            "RuntimeError: The server socket has failed to listen",
        ),
    ],
)
def test_cards_that_do_not_reach_each_other_leave_the_first_alone(error, reason):
    tried = []

    def fail():
        tried.append(1)
        raise error

    plan = plan_of(48, "generate")
    second = SecondCard(Settings(QWEN_GPUS="2"), second_gpu=lambda: card(48), try_link=fail)
    assert [second.extend(plan, machine(48), ["generate"]) for _ in range(2)] == [plan, plan] and tried == [1]
    assert second.report("generate") == {"state": reason}


def test_three_cards_are_refused_at_the_start_in_a_sentence(monkeypatch):
    monkeypatch.setenv("QWEN_GPUS", "3")
    with pytest.raises(Misconfigured, match="QWEN_GPUS: Input should be '1', '2' or 'auto', not '3'"):
        read_settings()


@pytest.mark.parametrize(("named", "chosen"), [(None, [0, 1]), ("3,1", [3, 1]), ("0", [0, None]), ("2, 0", [2, 0])])
def test_the_first_two_cards_are_those_that_cuda_is_told_to_use(monkeypatch, named, chosen):
    """pynvml stands for the driver of a machine of four cards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 4,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda number: "NVIDIA L40S",
        "nvmlDeviceGetCudaComputeCapability": lambda number: (8, 9),
        "nvmlDeviceGetMigMode": lambda number: (0, 0),
        "nvmlDeviceGetMemoryInfo": lambda number: type("Memory", (), {"total": 48 * GB, "free": number}),
    }.items():
        monkeypatch.setattr(nvml.pynvml, name, answer)
    for number, expected in enumerate(chosen):
        if expected is None:
            with pytest.raises(nvml.Unreadable, match="CUDA uses 1 cards"):
                nvml.read_card(number)
        else:
            assert nvml.read_card(number).free_bytes == expected
