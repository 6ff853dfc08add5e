"""The text of docs/cards.md, from the rows of `costs` and `fit`. Knows nothing of where the figures come from."""

from collections.abc import Iterable

from .measure.layouts import layout_of
from .report.rows import MEASURED

LIMIT = 30  # seconds that a job is hoped to take at most
HEAD = """# Cards

What a picture takes and costs on each pool of RunPod's cards, and how much memory the models take. Written by
`python -m benchmarks costs` from what `python -m benchmarks fit` and `speed` have recorded in `benchmarks/results/`
([how](#measuring-a-card)).

Every figure says how it is known. **Measured**: on that card. **Scaled**: from another card's measured seconds, by the
dense bfloat16 rates of the two. **Not measured**: computed from the 18.5 s that others measured for a picture on an
H100 with stock diffusers, and 2.6 times that for an edit.

## Seconds and dollars

At 1024x1024; prices of June 2026. Beside each figure, how many steps a job within {limit} s has.
"""
COSTS = """
{cheapest}

Smaller cards reach a larger share of their rate, so what is computed or scaled for them is likelier to be too high: an
L20 took 181 s, measured by others at 1328x1328, where this arithmetic says 290. Loads, transfers from RAM and quantized
products are left out of what is computed, and everywhere a worker's start and the idle seconds after a job
(`--idle-timeout`), which cost as much as drawing. Half the steps cost half, and `guidance_scale` 1 half of that. Jobs
that take longer than 300 seconds need a higher `--execution-timeout`. With live prices and your endpoint's own seconds:
`python deploy_qwen.py cost --endpoint-id ID`.

## Where {limit} seconds hold

"""
SPEED = """
## Beside stock diffusers and the floor

Seconds a job of ours and of stock diffusers with the same weights in one process, job by job in turns; the floor is the
transformer's arithmetic over the rate of a large matrix product on that card.

"""
MEMORY = """
## Memory

Predicted and measured peaks of the whole card in GB, its CUDA context included, and seconds a step, at
{sizes}. `ours` is served under a cap of that many GB with one task or both, `stock` diffusers with one. The layouts are
explained in [Memory](../QWEN_IMPLEMENTATION.md#memory).

"""


MEASURING = """
## Measuring a card

On a machine with the card, the packages of `requirements-dev.txt` and 60 GB of free disk (or RAM):

```bash
benchmarks/on_gpu.sh          # nine minutes, the most worth first; again to go on, until all is "measured before"
python -m benchmarks costs    # writes this page anew
```

The models are the released architecture with random weights, so nothing is downloaded. Each part is a process of its
own, and a call that is cut off loses only what was not finished; `python -m benchmarks fit --list` names the parts,
`--part` chooses. A larger card stands in for a smaller one, of another generation where asked: `--vram-gb 24
--architecture ampere`. For a machine without network, with torch and transformers but not the rest:
`benchmarks/wheels.sh FOLDER` here, `WHEELS=FOLDER benchmarks/on_gpu.sh` there. `speed` puts stock diffusers beside ours
in one process and both against the floor, the arithmetic over the card's measured rate; `--set NAME=VALUE` adds our
worker with a setting.

![Predicted and measured memory, seconds a step](../benchmarks/results/fit.png)

![Where a picture's seconds go](../benchmarks/results/speed.png)
"""


def page(rows: list[dict], fit: list[dict], speed: list[dict]) -> str:
    parts = [HEAD.format(limit=LIMIT)]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        of_preset = [row for row in rows if row["preset"] == preset]
        parts.append(f"\n### Preset `{preset}`\n\n" + seconds_table(of_preset))
    best = [row for row in rows if row["preset"] == rows[0]["preset"]]
    parts.append(COSTS.format(limit=LIMIT, cheapest=cheapest(best)) + holds(rows))
    parts.append(SPEED + speed_table(speed) + memory_section(fit) + MEASURING)
    return "".join(parts)


def seconds_table(rows: list[dict]) -> str:
    lines = [
        [f"{row['pool']}", row["card"], row["$/h"], *(cell(row, name) for name in ("picture", "edit"))] for row in rows
    ]
    return table(["pool", "card", "$/h", "picture", "edit"], lines)


def cell(row: dict, name: str) -> str:
    steps = row[f"{name} steps in {LIMIT} s"]
    return f"{row[f'{name} s']:g} s, ${row[f'$ {name}']}, {row[f'{name} is']}; {steps} steps"


def cheapest(rows: list[dict]) -> str:
    first, *_ = sorted(rows, key=lambda row: float(row["$ picture"]))
    least = min(rows, key=lambda row: float(row["$/h"]))
    words = f"The cheapest picture is the {first['card']}'s, ${first['$ picture']} ({first['picture is']})"
    return f"{words}; the {least['card']}, the cheapest card, draws it for ${least['$ picture']}."


def holds(rows: list[dict]) -> str:
    """A line for each preset and kind of job: the cards on which it ends in time, by how that is known."""
    lines = []
    for preset in dict.fromkeys(row["preset"] for row in rows):
        for name in ("picture", "edit"):
            within = [row for row in rows if row["preset"] == preset and row[f"{name} s"] <= LIMIT]
            cards = ", ".join(f"{row['card']} ({row[f'{name} is']})" for row in within)
            lines.append(f"- `{preset}`, {name}: {cards or 'on none of these cards'}\n")
    return "".join(lines)


def speed_table(speed: list[dict]) -> str:
    """A line for each pair that was measured in turns on a card, and for our presets."""
    lines = []
    for row in speed:
        if row["checkpoint"] == "tiny" or row["measured"] != MEASURED or row["contender"] != "ours":
            continue
        pair = ("device", "task", "size", "preset", "settings", "whole")
        stock = next((o for o in speed if o["contender"] == "stock" and all(o[n] == row[n] for n in pair)), {})
        words = [row["device"], row["task"], str(row["size"]), f"{row['preset']} {row['settings']}".strip()]
        seconds = [row.get("job s"), stock.get("job s"), row["step s"], stock.get("step s"), row["floor step s"]]
        shown = [str(row["steps"]), *("" if one is None else f"{one:.3g}" for one in seconds)]
        lines.append([*words, *shown, str(row.get("of stock", ""))])
    head = ["on", "task", "size", "preset", "steps", "ours", "stock", "a step", "stock's", "floor's", "ours of stock's"]
    return table(head, lines) if lines else "Not measured on any card.\n"


def memory_section(fit: Iterable[dict]) -> str:
    """A line for each case, task and device, its sizes side by side."""
    groups: dict[tuple, list[dict]] = {}
    for row in fit:
        if row["checkpoint"] != "tiny":
            groups.setdefault((row["part"], row["task"], row["device"]), []).append(row)
    lines = []
    for (part, task, device), rows in groups.items():
        layout = layout_of(rows[0].get("plan", ""))
        predicted = " / ".join(f"{row['predicted peak GB']:g}" for row in rows)
        step = " / ".join(f"{row['step s']:.3g}" for row in rows if row["measured"] == MEASURED)
        lines.append([part, task, layout, predicted, " / ".join(measured_peaks(rows)), step, device or ""])
    sizes = dict.fromkeys(f"{row['size']}x{row['size']}" for rows in groups.values() for row in rows)
    head = ["case", "task", "layout", "predicted", "measured", "s a step", "on"]
    return MEMORY.format(sizes=" / ".join(sizes)) + table(head, lines)


def measured_peaks(rows: list[dict]) -> list[str]:
    """Of each size; once in words where none is measured."""
    peaks = [f"{row['peak GB']:g}" if "peak GB" in row else row["measured"].partition(":")[0] for row in rows]
    return list(dict.fromkeys(peaks)) if not any("peak GB" in row for row in rows) else peaks


def table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *lines])
