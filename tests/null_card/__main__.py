"""`python -m tests.null_card`: the table of card, task and size, printed, and kept in benchmarks/results.

It says what today's worker takes of each card, beside what its plan says. Of the cases those are run whose names hold a
word that is given, or all; the others stay in the file as they were. The file has each case's date, and the names of
those that were never run.
"""

import argparse
import json
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from . import life
from .card import ROOT, CallFailed, Processes, why_not
from .cases import CASES, Case

RESULTS = ROOT / "benchmarks/results/null_card.json"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "torchao", "bitsandbytes", "peft")
JOBS = 50  # that are drawn after all others, to see whether anything stays behind
SECONDS = 3600  # what a case may take
GB = 1e9
HEADER = (
    "job",
    "size",
    "predicted GB",
    "allocated",
    "ratio",
    "reserved",
    "ratio",
    "room",
    "used of it",
    "pinned",
    "result",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.null_card", description=__doc__)
    parser.add_argument("words", nargs="*", help="run the cases whose names hold one of these (default: all)")
    parser.add_argument("--missing", action="store_true", help="leave out the cases that the file has, unless failed")
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs in the end of each case (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file to write (default: %(default)s)")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    held = json.loads(options.output.read_text())["cases"] if options.output.exists() else {}
    done = {name for name, found in held.items() if options.missing and "failed" not in found}
    with Processes() as processes:
        for case in chosen(options.words, done):
            started = time.perf_counter()
            held[case.name] = run(processes, case, options.jobs)
            show(case.name, held[case.name], time.perf_counter() - started)
            write(options.output, held)
    return any("failed" in one for one in held.values())


def chosen(words: Sequence[str], done: Collection[str]) -> list[Case]:
    """The cases whose names hold one of the words, or all without words, less those of the names in `done`."""
    wanted = (case for case in CASES if not words or any(word in case.name for word in words))
    return [case for case in wanted if case.name not in done]


def run(processes: Processes, case: Case, jobs: int) -> dict[str, Any]:
    """What became of the case: what `life.live` found, or why it failed; and the day of that."""
    try:
        found = processes.call(life.live, case.card, case.models, case.compiled, jobs, seconds=SECONDS)
    except CallFailed as failure:
        print(failure, file=sys.stderr)
        found = {"failed": str(failure).splitlines()[-1]}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}"} | found


def write(path: Path, held: dict[str, Any]) -> None:
    """Write what was found of the cases, by their names, in the table's order."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    names = [case.name for case in CASES]
    facts = {
        "benchmark": "null_card",
        "versions": versions,
        "never run": [name for name in names if name not in held],
        "cases": {name: held[name] for name in names if name in held},
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")


def show(name: str, found: dict[str, Any], seconds: float) -> None:
    """Print a case, its jobs as a table of Markdown."""
    print(f"\n### {name}\n")
    if "failed" in found:
        print(f"failed: {found['failed']}", flush=True)
        return
    print(f"{found['plan']} ({seconds:.0f} s)\n")
    for task, most in found["loading"].items():
        taken = ", ".join(f"{what} {most[what] / GB:.2f}" for what in most)
        print(f"- loading {task}, the most in GB: {taken}; of {found['limit'] / GB:.2f}")
    before, after = found["held"]
    kept = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    print(f"- stopped inside a step: {found['stopped']}; drawn while others held the card: {found['without room']}")
    codes = {code: found["after"].count(code) for code in sorted(set(found["after"]))}
    print(f"- jobs after all: {codes}; they left behind: {kept or 'nothing'}")
    print(f"- the host's memory that was really taken: {found['resident'] / GB:.1f} GB")
    for words in found["refused"]:
        print(f"- refused: {words}")
    print("\n| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for row in found["rows"]:
        print("| " + " | ".join(cells_of(row, found)) + " |")
    sys.stdout.flush()


def cells_of(row: dict[str, Any], found: dict[str, Any]) -> list[str]:
    references = f" + {row['references']}" if row["references"] else ""
    predicted = row["predicted"]
    return [
        f"{row['task']}{references}, {row['what']}",
        row["size"],
        f"{predicted / GB:.2f} of {found['limit'] / GB:.2f}",
        f"{row['allocated'] / GB:.2f}",
        f"{row['allocated'] / predicted:.2f}",
        f"{row['reserved'] / GB:.2f}",
        f"{row['reserved'] / predicted:.2f}",
        f"{row['room'] / GB:.2f}",
        f"{row['worked'] / row['room']:.2f}",
        f"{row['pinned'] / GB:.2f} of {found['pinned'] / GB:.2f}",
        result_of(row),
    ]


def result_of(row: dict[str, Any]) -> str:
    """How a job went, in words."""
    if row["code"] != "ok":
        return f"**{row['code']}**" if row["fits"] else f"{row['code']}, as planned"
    if row["tiled"]:
        return "in tiles, as planned"
    return "out of memory, then again in tiles" if row["out_of_memory"] else "ok"


if __name__ == "__main__":
    sys.exit(main())
