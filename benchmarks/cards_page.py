"""The text of docs/cards.md, from the rows of `costs`, `fit` and `speed`. Knows nothing of how a figure was had."""

from collections.abc import Iterable, Mapping

from .measure.layouts import layout_of
from .report.rows import FAILED, MEASURED, NOT_MEASURED

LIMIT = 30  # seconds that a job is hoped to take at most
HEAD = """# Cards

What a picture takes and costs on each pool of RunPod's cards. Written by `python -m benchmarks costs` from what
`python -m benchmarks fit` and `speed` have recorded in `benchmarks/results/` ([how](#measuring-a-card)).

## Measured

"""
SECONDS = """Seconds and dollars of a job at 1024x1024 by preset; prices of June 2026.

"""
SPEED = """
Seconds a job of ours and of stock diffusers with the same weights in one process, job by job in turns; the floor is the
transformer's arithmetic over the rate of a large matrix product on that card.

"""
MEMORY = """
Predicted and measured peaks of the whole card in GB, its CUDA context included, and seconds a step, at
{sizes}. `ours` is served under a cap of that many GB with one task or both, `stock` diffusers with one. The layouts are
explained in [Memory](operating.md#memory).

"""
COMPUTED = """
## Computed

Seconds and dollars of a job at 1024x1024 by preset; prices of June 2026. The seconds follow from the 18.5 s that others
measured for a picture on an H100 with stock diffusers, the arithmetic of a pass, and the ratio of the cards' dense
bfloat16 rates. A figure that is scaled follows in the same way from another card's seconds above.

The edit is one by Qwen-Image-Edit, whose pass has {edit:.1f} times a picture's arithmetic. With Qwen-Image-Edit-2509
and -2511 it is {one:.1f} times with one input picture, and {two:.1f} times with two.

"""
READING = """
{cheapest}
These jobs end within {limit} seconds: {within}.

The share of its rate that the H100 reaches is stock diffusers': [speed-ups](speed.md#speed-ups) are not counted. With
them a picture should take 10 to 12 s there, by the rates that others measured for each kind of kernel.

Smaller cards reach a larger share of their rate, so what is computed or scaled for them is likelier to be too high: an
L20 took 181 s, measured by others at 1328x1328, where this arithmetic says 290. Loads, transfers from RAM and quantized
products are left out of what is computed, and everywhere a worker's start and the idle seconds after a job
(`--idle-timeout`), which cost as much as drawing. A worker's RAM changes its [plan](operating.md#memory), which these
figures take no account of. Half the steps cost half, and `guidance_scale` 1 half of that. Jobs
that take longer than 300 seconds need a higher `--execution-timeout`. With live prices and your endpoint's own seconds:
`python deploy_qwen.py cost --endpoint-id ID`.
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


def page(rows: list[dict], fit: list[dict], speed: list[dict], ratios: Mapping[str, float]) -> str:
    """The page in Markdown. `rows`: of `costs`, `quality`'s first; `fit`, `speed`: as recorded, with their device.

    `ratios`: of the arithmetic of edits to a picture's, by the names that `COMPUTED` has.
    """
    seconds = seconds_table(rows, measured=True)
    measured = (SECONDS + seconds if seconds else "") + speed_section(speed) + memory_section(fit)
    quality = [row for row in rows if row["preset"] == rows[0]["preset"]]
    reading = READING.format(limit=LIMIT, cheapest=cheapest(quality), within=within_limit(rows))
    computed = COMPUTED.format(**ratios) + seconds_table(rows, measured=False) + reading
    return HEAD + (measured.lstrip("\n") or "No card has been measured yet.\n") + computed + MEASURING


def seconds_table(rows: list[dict], measured: bool) -> str:
    """The figures that were measured, or those that were not: a line for each card and preset with at least one."""
    lines = []
    for row in rows:
        cells = [cell(row, name) if (row[f"{name} is"] == MEASURED) == measured else "" for name in ("picture", "edit")]
        if any(cells):
            lines.append([row["pool"], row["card"], row["$/h"], row["preset"], *cells])
    return table(["pool", "card", "$/h", "preset", "picture", "edit"], lines) if lines else ""


def cell(row: dict, name: str) -> str:
    basis = row[f"{name} is"]
    scaled = f", {basis}" if basis.startswith("scaled") else ""
    return f"{row[f'{name} s']:g} s, ${row[f'$ {name}']}{scaled}"


def cheapest(rows: list[dict]) -> str:
    """The card with the cheapest picture, and the cheapest card's. `rows`: of one preset."""
    first = min(rows, key=lambda row: float(row["$ picture"]))
    least = min(rows, key=lambda row: float(row["$/h"]))
    words = f"The cheapest picture is the {first['card']}'s, ${first['$ picture']} ({first['picture is']})"
    return f"{words}; the {least['card']}, the cheapest card, draws it for ${least['$ picture']}."


def within_limit(rows: list[dict]) -> str:
    """For each preset and kind of job the cards on which it ends in time."""
    words = []
    for preset in dict.fromkeys(row["preset"] for row in rows):
        for article, name in (("a", "picture"), ("an", "edit")):
            cards = [row["card"] for row in rows if row["preset"] == preset and row[f"{name} s"] <= LIMIT]
            words.append(f"{article} {name} by `{preset}` on {', '.join(cards) or 'no card'}")
    return "; ".join(words)


def speed_section(speed: list[dict]) -> str:
    """A line for each pair that was measured in turns on a card, and for our presets."""
    lines = []
    for row in speed:
        if row["checkpoint"] == "tiny" or row["measured"] != MEASURED or row["contender"] != "ours":
            continue
        pair = ("device", "task", "size", "preset", "settings", "whole")
        stock = next((o for o in speed if o["contender"] == "stock" and all(o[n] == row[n] for n in pair)), {})
        words = [row["device"], row["task"], str(row["size"]), f"{row['preset']} {row['settings']}".strip()]
        seconds = [row.get("job s"), stock.get("job s"), row["step s"], stock.get("step s"), row["floor step s"]]
        shown = [str(row["steps"]), *("" if second is None else f"{second:.3g}" for second in seconds)]
        lines.append([*words, *shown, str(row.get("of stock", ""))])
    head = ["on", "task", "size", "preset", "steps", "ours", "stock", "a step", "stock's", "floor's", "ours of stock's"]
    return SPEED + table(head, lines) if lines else ""


def memory_section(fit: Iterable[dict]) -> str:
    """A line for each case, task and device that was tried, its sizes side by side."""
    groups: dict[tuple, list[dict]] = {}
    for row in fit:
        if row["checkpoint"] != "tiny" and not row["measured"].startswith(NOT_MEASURED):
            groups.setdefault((row["part"], row["task"], row["device"]), []).append(row)
    lines = []
    for (part, task, device), rows in groups.items():
        predicted = " / ".join(f"{row['predicted peak GB']:g}" for row in rows)
        peaks = " / ".join(f"{row['peak GB']:g}" if row["measured"] == MEASURED else FAILED for row in rows)
        steps = " / ".join(f"{row['step s']:.3g}" for row in rows if row["measured"] == MEASURED)
        lines.append([part, task, layout_of(rows[0].get("plan", "")), predicted, peaks, steps, device])
    sizes = dict.fromkeys(f"{row['size']}x{row['size']}" for rows in groups.values() for row in rows)
    head = ["case", "task", "layout", "predicted", "measured", "s a step", "on"]
    return MEMORY.format(sizes=" / ".join(sizes)) + table(head, lines) if lines else ""


def table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *lines])
