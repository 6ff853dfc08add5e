"""The text of docs/cards.md, from the rows of `costs`, `fit` and `speed`. Knows nothing of how a figure was had."""

from collections.abc import Iterable, Mapping

from qwen_deploy.offers import PICTURE_SECONDS

from .measure.layouts import layout_of
from .report.rows import FAILED, MEASURED, NOT_MEASURED

JOBS = ("picture", "edit", "fast picture")
HEAD = """# Cards

What a picture takes and costs on each pool of RunPod's cards. Written by `python -m benchmarks costs` from the table of
`python -m benchmarks computed`, and from what `fit` and `speed` have recorded ([how](#measuring-a-card)).

## Measured

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
## What a picture takes and costs

Seconds and dollars of a job at 1024x1024 on the slowest card of each pool, with both models and 32 GB of RAM, at prices
of {prices_of}. They are from `benchmarks/results/computed.json`, which has every card and layout, and by which
`python deploy_qwen.py` chooses cards, with live prices. A worker's RAM changes its [layout](operating.md#memory).

"""
READING = """
{cheapest}
By `quality`, these pools draw a picture within {limit} seconds: {pictures}.
These draw an edit within {limit} seconds too: {both}.
With the image for CUDA 12.6 and these prices, `--gpu auto` takes {auto}.

**How they are computed.** Counted arithmetic is divided by rates that cards attain: about 80 % of the dense bfloat16
rate, less on cards of little power, and attention as its authors published it (`benchmarks/rates.py`). A figure has
in it:

- all passes through the transformer, with what is bound by the card's memory: 100 for `quality`, 36 for `balanced`, and
  8 for `fast`, whose LoRA's own products are left out
- one encoding of the prompt and, with guidance, one of the negative prompt. A text encoder that is streamed takes the
  longer of its arithmetic and of its way over PCIe, 15.5 GB each time
- decoding and encoding by the VAE; where transformers take turns, one's way from RAM

It leaves out the queue, loading, downloads and the idle seconds after a job (`--idle-timeout`), which are paid for too.
`python deploy_qwen.py cost --per-day N` counts idle seconds and cold starts. An edit is one by Qwen-Image-Edit with one
input picture. With Qwen-Image-Edit-2509 and -2511 it takes about {plus:.0%} of that.

No figure of a card here was measured with this worker, unless it says so. For comparison: others measured 18.5 s for a
picture on an H100 with stock diffusers, and 181 s for one of 1328x1328 on an L20.
"""
MEASURING = """
## Measuring a card

On a machine with the card, the packages of `requirements-dev.txt` and 60 GB of free disk (or RAM):

```bash
benchmarks/on_gpu.sh          # nine minutes, the most worth first; again to go on, until all is "measured before"
python -m benchmarks computed && python -m benchmarks costs    # writes the table and this page anew
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


def page(rows: list[dict], fit: list[dict], speed: list[dict], facts: Mapping[str, object]) -> str:
    """The page in Markdown. `rows`: of `costs`; `fit`, `speed`: as recorded, with their device.

    `facts`: `prices_of`, `plus` and `auto`, by the names that the texts have, and the section `presets`.
    """
    measured = speed_section(speed) + memory_section(fit)
    fast_enough = [row["pool"] for row in rows if row["picture s"] <= PICTURE_SECONDS]
    both = [row["pool"] for row in rows if row["picture s"] <= PICTURE_SECONDS and row["edit s"] <= PICTURE_SECONDS]
    words = {
        "cheapest": cheapest(rows),
        "limit": f"{PICTURE_SECONDS:g}",
        "pictures": join(fast_enough),
        "both": join(both),
    }
    computed = COMPUTED.format(**facts) + seconds_table(rows) + READING.format(**words, **facts)
    return (
        HEAD
        + (measured.lstrip("\n") or "No card has been measured yet.\n")
        + computed
        + str(facts["presets"])
        + MEASURING
    )


def join(pools: list[str]) -> str:
    return ", ".join(pools) or "none"


def seconds_table(rows: list[dict]) -> str:
    head = ["pool", "cards", "$/h", "layout", "picture", "edit", "`fast` picture", "basis"]
    lines = [
        [row["pool"], row["cards"], row["$/h"], row["layout"], *(cell(row, name) for name in JOBS), row["known"]]
        for row in rows
    ]
    return table(head, lines)


def cell(row: dict, name: str) -> str:
    if f"{name} s" not in row:
        return "does not fit"
    return f"{row[f'{name} s']:.3g} s, ${row[f'$ {name}']}"


def cheapest(rows: list[dict]) -> str:
    """The pool with the cheapest picture, and the cheapest pool's."""
    first = min(rows, key=lambda row: float(row["$ picture"]))
    least = min(rows, key=lambda row: float(row["$/h"]))
    words = f"The cheapest picture is {first['pool']}'s, ${first['$ picture']} ({first['known']})"
    return f"{words}; {least['pool']}, the cheapest pool an hour, draws it for ${least['$ picture']}."


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
