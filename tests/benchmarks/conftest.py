"""What the tests of the benchmarks stand on: machines that are not there, options, rows, a card."""

import argparse
import json
import sys

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.measure import full_size
from qwen_worker.memory.machine import Gpu, Machine

GB = 1_000_000_000
NOTHING_HERE = Machine(None, 16 * GB, 12 * GB)


def machine(name="NVIDIA H100 80GB HBM3", gb=85.5, capability=(9, 0), ram=128):
    return Machine(Gpu(name, capability, round(gb * GB), round(gb * GB)), ram * GB, ram * GB)


def options(module, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    module.add_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def quiet(monkeypatch):
    """Parts set the log's level for the process that they have to themselves: here it is put back."""
    monkeypatch.setenv("RUNPOD_DEBUG_LEVEL", "WARN")


@pytest.fixture
def benchmark(tmp_path, monkeypatch, quiet):
    """benchmark(*arguments): the report of the command, run in this process, where the libraries are imported once."""
    output = tmp_path / "result.json"

    def measured(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--output", str(output)])
        main()
        return json.loads(output.read_text())

    return measured


@pytest.fixture(scope="session")
def released_models():
    """The models of the released architecture, without memory for their weights."""
    return full_size.empty_models()


def served_rows(work, part, **more):
    sent = []
    work(sent.append, list(part.rows), **(part.arguments | more))
    return sent


def speed_row(device="NVIDIA H100 80GB HBM3", task="generate", **fields):
    stages = {"text s": 0.5, "encode s": 0.0, "decode s": 0.4, "rest s": 0.1, "step s": 0.2, "job s": 2.6}
    row = {"checkpoint": full_size.NAME, "task": task, "size": 1024, "contender": "ours", "preset": "quality"}
    row |= {"settings": "", "whole": False, "steps": 8, "passes": 16, "measured": "measured", "device": device}
    return row | stages | fields


def fit_row(cap=24, **fields):
    row = speed_row(**fields)
    del row["contender"], row["preset"], row["settings"], row["whole"]
    return row | {"part": f"ours-{cap}-generate", "cap GB": cap}


class FakeEvent:
    """Records a time that moves on by 10 ms with every event."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.now += 10.0
        self.at = FakeEvent.now

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def fake_card(monkeypatch):
    """An H100 with 1 GB in use by others, on which torch has opened a context of 0.6 GB and reserved 20 GB."""
    free = [84.5 * GB]
    gpu = lambda: Gpu("NVIDIA H100 80GB HBM3", (9, 0), round(85.5 * GB), round(free[0]))  # noqa: E731
    monkeypatch.setattr("benchmarks.measure.card_memory.read_gpu", gpu)
    calls = {
        "mem_get_info": lambda: (0, 85 * GB),
        "memory_reserved": lambda: 20 * GB,
        "max_memory_reserved": lambda: 21 * GB,
        "max_memory_allocated": lambda: 19 * GB,
        "memory_stats": lambda: {"num_alloc_retries": 2, "num_ooms": 1},
        "memory_allocated": lambda: round(13.77 * GB),
        "host_memory_stats": lambda: {"allocated_bytes.current": 28 * GB},
        "synchronize": lambda: None,
        "Event": FakeEvent,
    }
    for name, value in calls.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return free
