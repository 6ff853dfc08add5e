"""The tables of a step's account in docs/speed.md, as Markdown: `python -m benchmarks.step_tables` prints them.

Knows nothing of how the record was made.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from .cards_page import table

RECORD = Path(__file__).parent / "results/step.json"
SIZE = 1024
NAMES = {
    "generate": "`generate`", "edit": "Qwen-Image-Edit", "edit plus": "Edit-2509",
    "edit plus, 2 pictures": "Edit-2509, two input pictures", "edit 2511": "Edit-2511",
}  # fmt: skip


def account_table(rows: Iterable[dict]) -> str:
    """A line for each kind of job, contender and precision at 1024x1024."""
    head = ["job", "by", "TFLOP", "MB a block", "kernels", "waits", "graphs", "H100", "A100", "L40S"]
    lines = [
        [
            NAMES[row["kind"]], f"{row['contender']}, {row['precision']}", f"{row['TFLOP']:.0f}",
            f"{row['elementwise MB a block']:.0f}", str(row["launches a pass"]), str(row["waits"]),
            f"{row['graphs at load']} + {row['graphs in jobs']}" if row["contender"] == "ours" else "",
            *(f"{row['seconds'][card]:.3f} s" if card in row["seconds"] else "" for card in ("H100", "A100", "L40S")),
        ]
        for row in rows if row["size"] == SIZE
    ]  # fmt: skip
    return table(head, lines)


def size_table(rows: Iterable[dict]) -> str:
    """A line for each size of a picture, ours and stock beside each other in bfloat16."""
    head = ["picture", "MB a block: ours, stock", "kernels a pass", "H100", "H200", "L40S"]
    pairs: dict[int, dict[str, dict]] = {}
    for row in rows:
        if row["kind"] == "generate" and row["precision"] == "bf16":
            pairs.setdefault(row["size"], {})[row["contender"]] = row
    lines: list[list[str]] = []
    for size, by in sorted(pairs.items()):
        both = by["ours"], by["stock"]
        cells = [", ".join(f"{row['elementwise MB a block']:.0f}" for row in both)]
        cells.append(", ".join(str(row["launches a pass"]) for row in both))
        cells += [", ".join(f"{row['seconds'][card]:.3f} s" for row in both) for card in ("H100", "H200", "L40S")]
        lines.append([f"{size}x{size}", *cells])
    return table(head, lines)


def published_table(rows: Iterable[dict]) -> str:
    """A line for each figure that others have published, with what the account gives."""
    head = ["who", "card", "job", "published", "computed", "of published", "within 10 %", "source"]
    lines = [
        [
            row["who"], row["card"], NAMES[row["kind"]], f"{row['published s']:g} s", f"{row['computed s']:g} s",
            f"{row['of published']:.2f}", row["held"], row["source"],
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, lines)


def tables() -> list[str]:
    record = json.loads(RECORD.read_text())
    return [account_table(record["rows"]), size_table(record["rows"]), published_table(record["published"])]


if __name__ == "__main__":
    print("\n".join(tables()))
