"""What fits which card: predicted and measured peaks, seconds a step and bytes a second of loading, beside stock.

Each part serves one layout in a process of its own: our worker under a cap, or stock diffusers under the same cap. The
cap is set twice: QWEN_VRAM_GB makes the plan, and torch may take no more than the cap less a GiB for the context. A
larger card stands in for a smaller one (`--architecture` says which; precisions that the real card cannot run are not
measured). Without a GPU the tiny checkpoint is served on the CPU, and every card's rows hold what is planned for it.
For a GPU, ended in nine minutes and gone on with by the next call:

    python -m benchmarks fit --full-size /tmp/full-size --seconds 540
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from qwen_worker.memory.footprint import Plan
from qwen_worker.memory.machine import Machine, read_machine

from .measure import full_size, layout_run, layouts
from .measure.card_memory import gb
from .measure.layouts import Case
from .report import plots, resumable
from .report.rows import NOT_MEASURED, Record, surroundings

KEY = ("checkpoint", "part", "task", "size", "architecture", "precision")
COLUMNS = (
    "part", "task", "size", "plan", "predicted peak GB", "peak GB", "of predicted", "step s", "job s", "load s",
    "load GB/s", "read GB/s", "measured",
)  # fmt: skip
PART_NEEDS = 170  # seconds a part is likely to take: writing or reading 57 GB, compiling, two sizes, a few steps


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vram-gb", type=float, nargs="+", help="the cards' memory in GB (default: 16 to 141)")
    parser.add_argument("--contenders", nargs="+", choices=("ours", "stock"), default=["ours", "stock"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 1328], help="sides (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="timed denoising steps (default: %(default)s)")
    parser.add_argument("--architecture", choices=layouts.ARCHITECTURES, help="pretend this one for every cap")
    parser.add_argument("--ram-gb", type=float, help="plan with so much RAM (default: what this machine has free)")
    parser.add_argument("--precision", default="auto", help="as QWEN_PRECISION (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before every load")
    full_size.add_options(parser)
    resumable.add_options(parser)


def run(options: argparse.Namespace) -> tuple[list[dict], None]:
    real, end = read_machine(), resumable.end_of(options)
    record = Record(options.output, "fit", KEY, surroundings() | {"steps": options.steps})
    resumable.run(parts_of(options, real), record, options, end)
    plots.fit(record, options.output.with_suffix(".png"))
    # Rows of predictions alone are shown where there is no card; beside a card's they would bury what was measured.
    shown = [row for row in record.rows if real.gpu is None or not row["measured"].startswith(NOT_MEASURED)]
    rows = [{name: row.get(name, "") for name in COLUMNS} for row in shown]
    return [row | {"plan": layouts.layout_of(row["plan"])} for row in rows], None


def parts_of(options: argparse.Namespace, real: Machine) -> list[resumable.Part]:
    """The cards' cases on the full-size checkpoint and, without a GPU, what this CPU serves of the tiny one."""
    folder, obstacle = full_size.folder_for(options, real)
    parts = [part_of(case, folder, options, real, obstacle) for case in layouts.cases_for_caps(options.vram_gb)]
    if real.gpu is None and not options.vram_gb:
        parts += [part_of(case, full_size.TINY, options, real, "") for case in layouts.HERE]
    return [part for part in parts if part.name.partition("-")[0] in options.contenders]


def part_of(
    case: Case, folder: Path | None, options: argparse.Namespace, real: Machine, obstacle: str
) -> resumable.Part:
    """The part that serves the case on the checkpoints in `folder`. `obstacle`: why there are none, if so."""
    arguments = {"case": case, "folder": folder, "steps": options.steps, "cold": options.cold}
    plan, refused = None, ""
    if case.contender == "ours":
        machine = layouts.machine_for(case, real, options.architecture, options.ram_gb)
        arguments |= {"machine": machine, "precision": options.precision}
        if case.cap:
            plan, refused = layouts.plan_for(case, machine, options.precision)
    else:
        arguments["way"] = layouts.way_of(case, max(options.sizes))
    obstacle = refused or layouts.obstacle(case, real.gpu, plan, find_spec) or obstacle
    rows = tuple(row_of(case, plan, task, size, options, folder) for task in case.tasks for size in options.sizes)
    work = layout_run.serve_ours if case.contender == "ours" else layout_run.serve_stock
    return resumable.Part(case.name, rows, work, arguments, PART_NEEDS if real.gpu else 0, obstacle)


def row_of(
    case: Case, plan: Plan | None, task: str, size: int, options: argparse.Namespace, folder: Path | None
) -> dict:
    """A row's key, and what is predicted of it. `plan`: ours for the case, None for stock."""
    row = {
        "checkpoint": "tiny" if folder == full_size.TINY else full_size.NAME,
        "part": case.name,
        "cap GB": case.cap,
        "task": task,
        "size": size,
        "architecture": layouts.architecture_of(case, options.architecture),
        "precision": options.precision,
    }
    if folder == full_size.TINY:
        return row  # the plan is one for the released models and says nothing of the tiny one
    if plan:
        return row | layout_run.prediction(plan, size, task)
    if case.cap and case.contender == "stock":
        way = layouts.way_of(case, max(options.sizes))
        peak = layouts.stock_peaks(case.tasks[0], size)[way]
        return row | {"plan": f"bf16 on cuda, {way}", "predicted peak GB": gb(peak)}
    return row
