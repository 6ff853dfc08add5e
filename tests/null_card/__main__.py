"""`python -m tests.null_card`: the table of card, task and size, printed, and kept in benchmarks/results/null_card.json.

What today's worker takes of each card, beside what its plan says. Cases whose names hold a word that is given, or all;
those that are not run stay in the file as they were.
"""

import argparse
import json
import sys
import time
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
HEADER = ("job", "size", "of limit GB", "predicted", "allocated", "ratio", "reserved", "ratio", "pinned GB", "result")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.null_card", description=__doc__)
    parser.add_argument("words", nargs="*", help="run the cases whose names hold one of these (default: all)")
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs in the end of each case (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file to write (default: %(default)s)")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    held = json.loads(options.output.read_text())["cases"] if options.output.exists() else {}
    with Processes() as processes:
        for case in (one for one in CASES if not options.words or any(word in one.name for word in options.words)):
            started = time.perf_counter()
            held[case.name] = lived(processes, case, options.jobs)
            show(case.name, held[case.name], time.perf_counter() - started)
            write(options.output, {one.name: held[one.name] for one in CASES if one.name in held})
    return any("failed" in one for one in held.values())


def lived(processes: Processes, case: Case, jobs: int) -> dict[str, Any]:
    """What became of the case: the rows and the rest of `life.live`, or why it failed."""
    try:
        return processes.call(life.live, case.card, case.models, jobs, seconds=SECONDS)
    except CallFailed as failure:
        print(failure, file=sys.stderr)
        return {"failed": str(failure).splitlines()[-1]}


def write(path: Path, cases: dict[str, Any]) -> None:
    versions = {name: metadata.version(name) for name in PACKAGES}
    text = json.dumps({"benchmark": "null_card", "versions": versions, "cases": cases}, indent=1)
    path.write_text(text + "\n")


def show(name: str, found: dict[str, Any], seconds: float) -> None:
    """Print a case as a table of Markdown."""
    print(f"\n{name} ({seconds:.0f} s)")
    if "failed" in found:
        print(f"failed: {found['failed']}", flush=True)
        return
    print(f"{found['rows'][-1]['plan']}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for row in found["rows"]:
        print("| " + " | ".join(cells_of(row)) + " |")
    codes = {code: found["after"].count(code) for code in found["after"]}
    before, after = found["held"]
    kept = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    print(f"\nstopped inside a step: {found['stopped']}; others hold the card: {found['short']}; then {codes}")
    print(f"stays behind after those: {kept or 'nothing'}; host memory really taken: {found['resident'] / GB:.1f} GB")
    for words in found["refused"]:
        print(f"refused: {words}")
    sys.stdout.flush()


def cells_of(row: dict[str, Any]) -> list[str]:
    references = f" + {row['references']}" if row["references"] else ""
    predicted = row["predicted"]
    result = row["code"] if row["code"] != "ok" else "tiles" if row["tiled"] else "ok"
    if row["out_of_memory"]:
        result += f", out of memory {row['out_of_memory']} times"
    return [
        f"{row['task']}{references}, {row['what']}",
        row["size"],
        f"{row['limit'] / GB:.2f}",
        f"{predicted / GB:.2f}",
        f"{row['allocated'] / GB:.2f}",
        f"{row['allocated'] / predicted:.2f}",
        f"{row['reserved'] / GB:.2f}",
        f"{row['reserved'] / predicted:.2f}",
        f"{row['pinned_planned'] / GB:.2f} planned, {row['pinned'] / GB:.2f}",
        result,
    ]


if __name__ == "__main__":
    sys.exit(main())
