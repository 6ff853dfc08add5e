"""The JSON of a benchmark that takes longer than one call: each row is written the moment it is measured.

A row is found again by the fields that say what it is of, and belongs to a run: the device, libraries and driver it was
measured with. Rows of another device stay beside it; of the same device the newest stays. Knows nothing of what is
measured.
"""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
import pynvml

from qwen_worker.memory.footprint import GB
from qwen_worker.memory.machine import read_machine

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
AROUND = ("date", "driver", "processor")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "torchao", "bitsandbytes")


class Record:
    """The rows in `path`, those of earlier calls included. `key`: the names of the fields that say what a row is of."""

    def __init__(self, path: Path, benchmark: str, key: Sequence[str], run: dict):
        held = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.benchmark, self.key = path, benchmark, tuple(key)
        self.runs: dict[str, dict] = held.get("runs", {})
        self.rows: list[dict] = held.get("rows", [])
        self.run = self.number_of(run)

    def number_of(self, run: dict) -> str:
        """The number of the run with these facts, a new one where there is none; the day it began is no such fact."""
        for number, known in self.runs.items():
            if {name: value for name, value in known.items() if name != "date"} == run:
                return number
        number = str(max(map(int, self.runs), default=0) + 1)
        self.runs[number] = {"date": datetime.now(UTC).date().isoformat()} | run
        return number

    def of(self, row: dict) -> tuple:
        return tuple(row.get(name) for name in self.key)

    def has(self, row: dict) -> bool:
        """Whether a run like this one has measured what the row is of, or has seen it fail."""
        alike = [number for number, run in self.runs.items() if self.alike(run)]
        return any(one["run"] in alike and self.of(one) == self.of(row) for one in self.rows)

    def alike(self, run: dict) -> bool:
        """Whether it has the same device, libraries and settings; the machine around the card may be another."""
        now = self.runs[self.run]
        return all(run.get(name) == value for name, value in now.items() if name not in AROUND)

    def put(self, row: dict) -> None:
        """A row of this run, in the place of what was known of it on this device."""
        self.keep(row | {"run": self.run})
        self.write()

    def expect(self, row: dict, why: str) -> None:
        """A row that nobody has measured, with what is known ahead; without effect where one is measured anywhere."""
        if not any(self.of(one) == self.of(row) and one["run"] for one in self.rows):
            self.keep(row | {"measured": f"{NOT_MEASURED}: {why}", "run": None})

    def keep(self, row: dict) -> None:
        device = self.runs[self.run]["device"]

        def replaced(one: dict) -> bool:
            old = one["run"] is None or self.runs[one["run"]]["device"] == device
            return old and self.of(one) == self.of(row)

        place = next((number for number, one in enumerate(self.rows) if replaced(one)), len(self.rows))
        self.rows = [one for one in self.rows if not replaced(one)]
        self.rows.insert(place, row)

    def write(self) -> None:
        """Whole or not at all: a call that is killed here leaves the file of before."""
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
    """What a measurement depends on beside its settings; opens no CUDA context."""
    machine = read_machine()
    return {
        "device": machine.gpu.name if machine.gpu else "CPU",
        "device GB": round((machine.gpu.total_bytes if machine.gpu else machine.ram_total_bytes) / GB, 1),
        "driver": driver() if machine.gpu else None,
        "processor": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def driver() -> str:
    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
