"""The JSON of a benchmark that takes longer than one call: each row is written the moment it is measured.

A row's key is the fields that say what was measured; its run is the device, the libraries and the driver with which.
A new row takes the place of the row with the same key of the same device; rows of other devices stay beside it. Knows
nothing of what is measured.
"""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from qwen_worker.jobs.request import Drawing
from qwen_worker.memory.footprint import GB
from qwen_worker.memory.machine import read_machine
from qwen_worker.memory.nvml import driver_version

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
NOT_LOADED, OUT_OF_MEMORY = "while loading", ("out of memory", "OutOfMemoryError")  # in the words of failures
FULL_STEPS = Drawing.model_fields["num_inference_steps"].default  # of a whole job of `quality`
AROUND = ("date", "driver", "processor")  # what may differ between two runs that are alike
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "torchao", "bitsandbytes")


class Record:
    """The rows in `path`, those of earlier calls included. `key`: the names of the fields that make a row's key.

    Every row has `measured`: MEASURED, or NOT_MEASURED or FAILED with a colon and the reason; and `run`: the number of
    its run, None where it is not measured.
    """

    def __init__(self, path: Path, benchmark: str, key: Sequence[str], run: dict):
        held = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.benchmark, self.key = path, benchmark, tuple(key)
        self.runs: dict[str, dict] = held.get("runs", {})
        self.rows: list[dict] = held.get("rows", [])
        self.run = self.run_number(run)

    def run_number(self, run: dict) -> str:
        """The number of the run with these facts, a new number where no run has them; any date will do."""
        for number, held in self.runs.items():
            if {name: value for name, value in held.items() if name != "date"} == run:
                return number
        number = str(max(map(int, self.runs), default=0) + 1)
        self.runs[number] = {"date": datetime.now(UTC).date().isoformat()} | run
        return number

    def key_of(self, row: dict) -> tuple:
        return tuple(row.get(name) for name in self.key)

    def outcome(self, row: dict) -> str | None:
        """`measured` of the row with the same key, as a run like this one has recorded it; None where none has."""
        alike = [number for number, run in self.runs.items() if self.is_alike(run)]
        recorded = (held for held in self.rows if held["run"] in alike and self.key_of(held) == self.key_of(row))
        return next((held["measured"] for held in recorded), None)

    def is_final(self, row: dict) -> bool:
        """Whether the row needs no other try: it is measured, or failed by what it measures.

        A model that did not load says nothing of speed or memory, and may load once a package or our code is mended.
        One that did not fit has been measured.
        """
        words = self.outcome(row)
        if words is None or not words.startswith(FAILED):
            return words is not None
        return NOT_LOADED not in words or any(memory in words for memory in OUT_OF_MEMORY)

    def is_alike(self, run: dict) -> bool:
        """Whether the run has this run's device, libraries and settings; the machine around the card may be another."""
        now = self.runs[self.run]
        return all(run.get(name) == value for name, value in now.items() if name not in AROUND)

    def add(self, row: dict) -> None:
        """Record a row of this run, in the place of the row with the same key on this device."""
        self.replace(row | {"run": self.run})
        self.write()

    def expect(self, row: dict, why: str) -> None:
        """Record a row that is not measured, and why; no effect where any device has measured a row with its key."""
        if not any(self.key_of(held) == self.key_of(row) and held["run"] for held in self.rows):
            self.replace(row | {"measured": f"{NOT_MEASURED}: {why}", "run": None})

    def replace(self, row: dict) -> None:
        device = self.runs[self.run]["device"]

        def replaced(held: dict) -> bool:
            old = held["run"] is None or self.runs[held["run"]]["device"] == device
            return old and self.key_of(held) == self.key_of(row)

        place = next((number for number, held in enumerate(self.rows) if replaced(held)), len(self.rows))
        self.rows = [held for held in self.rows if not replaced(held)]
        self.rows.insert(place, row)

    def write(self) -> None:
        """Write the file whole or not at all: a call that is killed here leaves the file of before."""
        used = {row["run"] for row in self.rows} | {self.run}
        runs = {number: run for number, run in self.runs.items() if number in used}
        text = json.dumps({"benchmark": self.benchmark, "runs": runs, "rows": self.rows}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(text + "\n")
        os.replace(partial, self.path)

    def device_of(self, row: dict) -> str | None:
        return self.runs[row["run"]]["device"] if row["run"] else None


def surroundings() -> dict:
    """What a measurement depends on beside its settings, for a run; opens no CUDA context."""
    machine = read_machine()
    return {
        "device": machine.gpu.name if machine.gpu else "CPU",
        "device GB": round((machine.gpu.total_bytes if machine.gpu else machine.ram_total_bytes) / GB, 1),
        "driver": driver_version() if machine.gpu else None,
        "processor": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
