"""Pictures of what `fit` and `speed` have recorded. Without matplotlib no picture is drawn, and a line says so."""

from pathlib import Path
from typing import Any

from .rows import FULL_STEPS, MEASURED, Record

STAGES = ("text", "encode", "denoise", "decode", "rest")
COLOURS = {"ours": "tab:blue", "stock": "tab:grey"}


def fit(record: Record, path: Path) -> None:
    """Draw the cases at their first size: peaks, predicted as frames and measured as bars, beside seconds a step."""
    plot = pyplot()
    rows = list({(row["part"], row["task"], row["run"]): row for row in reversed(record.rows)}.values())[::-1]
    if plot is None or not rows:
        return
    figure, (memory, time) = plot.subplots(1, 2, figsize=(13, 1.5 + 0.24 * len(rows)), sharey=True)
    for number, row in enumerate(rows):
        colour = COLOURS[row["part"].partition("-")[0]]
        predicted, peak = row.get("predicted peak GB"), row.get("peak GB")
        if predicted:
            memory.barh(number, predicted, fill=False, edgecolor=colour)
        if peak:
            memory.barh(number, peak, color=colour, alpha=0.6, height=0.5)
        elif predicted:
            memory.text(predicted, number, f" {row['measured'].partition(':')[0]}", va="center", fontsize=6)
        if row["measured"] == MEASURED:
            time.barh(number, row["step s"], color=colour)
            time.text(row["step s"], number, f" {row['step s']:.3g}", va="center", fontsize=6)
    memory.set_yticks(range(len(rows)), [name_of(row, record) for row in rows], fontsize=6)
    memory.invert_yaxis()
    memory.margins(x=0.15)
    time.margins(x=0.15)
    memory.set_xlabel("peak of the card, GB: frame predicted, bar measured")
    time.set_xlabel("seconds a step")
    save(plot, figure, "Memory and time of each case at its first size", path)


def speed(record: Record, path: Path) -> None:
    """Draw each job's stages side by side, and the floor of its denoising as a line; a part of a job as a whole one."""
    plot = pyplot()
    rows = [row for row in record.rows if row["measured"] == MEASURED]
    rows = [row for row in rows if row["checkpoint"] != "tiny"] or rows
    if plot is None or not rows:
        return
    colours = dict(zip(STAGES, plot.get_cmap("tab10").colors, strict=False))
    figure, axes = plot.subplots(figsize=(11, 1.5 + 0.24 * len(rows)))
    for number, row in enumerate(rows):
        begun, steps = 0.0, row["steps"] if row["whole"] else FULL_STEPS
        for stage in STAGES:
            seconds = steps * row["step s"] if stage == "denoise" else row[f"{stage} s"]
            axes.barh(number, seconds, left=begun, color=colours[stage], label=stage if number == 0 else None)
            begun += seconds
        axes.plot([steps * row["floor step s"]] * 2, [number - 0.45, number + 0.45], color="black", linewidth=1)
        axes.text(begun, number, f" {begun:.3g}", va="center", fontsize=6)
    axes.set_yticks(range(len(rows)), [name_of(row, record) for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a job; the black line is the floor of its denoising")
    axes.margins(x=0.1)
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(STAGES))
    save(plot, figure, "Where a picture's seconds go", path)


def name_of(row: dict, record: Record) -> str:
    """A row's line on the axis."""
    device = record.device_of(row)
    if "part" in row:
        words = [row["part"], row["task"] * row["part"].endswith("-both"), str(row["size"])]
    else:
        whole = "whole" if row["whole"] else f"{FULL_STEPS} steps by {row['steps']}"
        words = [row["task"], str(row["size"]), row["contender"], row["preset"], row["settings"], whole]
    words += ["tiny"] * (row["checkpoint"] == "tiny") + ([f"({device})"] if device else [])
    return " ".join(filter(None, words))


def pyplot() -> Any:
    """The module that draws, None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("No plot: matplotlib is not installed (requirements-dev.txt)")
        return None
    matplotlib.use("agg")  # to a file; no display is asked for
    from matplotlib import pyplot

    return pyplot


def save(plot: Any, figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plot.close(figure)
    print(f"Plotted to {path}")
