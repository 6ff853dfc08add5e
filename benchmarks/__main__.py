"""Runs one benchmark, prints its table and writes its JSON below `benchmarks/results/`."""

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "handler": "what the worker adds to the bare pipeline call",
    "throughput": "jobs a minute with and without prefetch, and by a plain handler",
    "two_cards": "seconds a step with guidance's passes on two ranks, against one",
    "soak": "many jobs under faults: each ends once, and rightly",
    "fit": "memory, seconds a step and loading on each card, predicted and measured, beside stock diffusers",
    "speed": "seconds of each stage, ours and stock diffusers in turns, against the floor",
    "step": "the account of a step: kernels, bytes, waits and graphs, ours and stock, without a card",
    "guards": "the host's microseconds for a call of a compiled block, with torch's checks and without",
    "load": "bytes a second into a model: ours, from_pretrained, and a plain parallel read of the same file",
    "cold_start": "seconds from a worker's start to its first step, stage by stage, of one tree or several in turns",
    "computed": "the table of seconds that the deploy helper chooses cards by",
    "costs": "the page of cards: seconds and dollars a picture, from what fit and speed have recorded",
    "matching": "edits that lie on their input: framing, shifts and scales, colours",
    "photos": "the memory that photos of fifty megapixels take of the worker, with masks that are hostile too",
    "rounds": "what ten edits one after another leave of a picture, with masks and without",
    "single_files": "what single files of a transformer, in fp8 and GGUF, do to the pictures of the tiny checkpoint",
    "caches": "what step caches do to the pictures of the tiny checkpoint, for as many passes",
    "quality": "what each precision and each preset does to the pictures of the tiny checkpoint",
}
PACKAGES = ("torch", "diffusers", "transformers", "pillow")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, purpose in BENCHMARKS.items():
        command = commands.add_parser(name, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="the JSON file to write")
        if name in sys.argv[1:2]:  # the modules of the other commands and what they import are not needed
            module = import_module(f".{name}", __package__)
            command.description = module.__doc__
            module.add_options(command)
    options = parser.parse_args()
    rows, facts = module.run(options)
    if facts is not None:  # `fit` and `speed` have written their files row by row
        write(options, rows, facts)
    if rows:
        show(rows)
    print(f"Written to {options.output}")
    if wrong := (facts or {}).get("wrong"):
        raise SystemExit(f"{wrong} jobs ended wrongly")


def write(options: argparse.Namespace, rows: list[dict], facts: dict) -> None:
    report = {
        "benchmark": options.name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "versions": {package: metadata.version(package) for package in PACKAGES},
        **facts,
        "rows": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


def show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(str(name) for name in rows[0]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=max(160, Console().width)).print(table)


if __name__ == "__main__":
    main()
