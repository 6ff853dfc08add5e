"""Where a picture's seconds go: our worker and stock diffusers in turns in one process, against the floor.

Each part is a task with one set of our settings. Our worker is planned for both tasks, as on an endpoint, and stock is
put beside it around the same weights, so that both fit one card; they take turns job by job, so that a card that slows
down slows both. Stages are medians. The floor is the FLOPs of the transformer's passes, as they were called, over the
rate of a large matrix product measured in the same process. Every preset of the job contract has its rows: `quality` by
a few of its steps and, at `--whole-size`, by a whole job; the others whole; `fast` with a random LoRA, which costs what
a published one does and draws nothing of use. `--set NAME=VALUE` makes parts of their own with our worker so set;
`--speedups` makes one of each speed-up alone, of those that work together, of none and of all, by a few steps of
`quality`. For a GPU, ended in nine minutes and gone on with by the next call:

    python -m benchmarks speed --full-size /tmp/full-size --seconds 540
    python -m benchmarks speed --full-size /tmp/full-size --seconds 540 --speedups --sizes 1024 512
"""

import argparse
import itertools
from pathlib import Path

from qwen_worker.memory.machine import Machine, read_machine
from qwen_worker.model_settings import Speedup
from qwen_worker.preset_settings import Preset
from qwen_worker.settings import Settings

from .measure import full_size, interleaved, layouts
from .report import plots, resumable
from .report.rows import FULL_STEPS, NOT_MEASURED, Record, surroundings

KEY = ("checkpoint", "task", "size", "contender", "preset", "settings", "whole", "steps asked")
COLUMNS = (
    "task", "size", "contender", "preset", "settings", "speed-ups",
    "steps", "text s", "encode s", "step s", "decode s", "rest s",
    "job s", "floor step s", "of floor", "of stock", "measured",
)  # fmt: skip
QUALITY = "quality"
PART_NEEDS = 180  # seconds a part is likely to take
# What `--speedups` measures: none, each alone, those that pay only together, all.
SETS = ("none", *(speedup.value for speedup in Speedup), "compile,rotary", ",".join(Speedup))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=layouts.TASKS, default=list(layouts.TASKS))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1024, 512, 768, 1328], help="sides, in order (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=8, help="of a timed job of quality (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed jobs of each (default: %(default)s)")
    parser.add_argument("--whole-size", type=int, default=1024, help="0 for no whole jobs (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="our settings, as a further part")
    parser.add_argument("--speedups", action="store_true", help="parts of each speed-up alone and of all, instead")
    full_size.add_options(parser)
    resumable.add_options(parser)


def run(options: argparse.Namespace) -> tuple[list[dict], None]:
    end = resumable.end_of(options)
    record = Record(options.output, "speed", KEY, surroundings() | {"repeats": options.repeats})
    resumable.run(parts_of(options, read_machine()), record, options, end)
    plots.speed(record, options.output.with_suffix(".png"))
    shown = [row for row in record.rows if not row["measured"].startswith(NOT_MEASURED)]
    return [{name: row.get(name, "") for name in COLUMNS} for row in shown], None


def parts_of(options: argparse.Namespace, real: Machine) -> list[resumable.Part]:
    """The full-size checkpoint's parts and, without a GPU, the tiny one's: those alone are measured then."""
    folder, obstacle = full_size.folder_for(options, real)
    settings = settings_of(options.set)
    chosen = [settings | {"QWEN_SPEEDUPS": words} for words in SETS] if options.speedups else [settings]
    wanted = list(itertools.product(options.tasks, chosen))
    parts = [part_of(task, changed, folder, options, real, obstacle) for task, changed in wanted]
    tiny = [part_of(task, changed, full_size.TINY, options, real, "") for task, changed in wanted]
    return parts + (tiny if real.gpu is None else [])


def part_of(
    task: str, settings: dict, folder: Path | None, options: argparse.Namespace, real: Machine, obstacle: str
) -> resumable.Part:
    """The part of the task with our worker so set. `obstacle`: why the folder's checkpoints are not there, if so."""
    tiny = folder == full_size.TINY
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    common = {"checkpoint": "tiny" if tiny else full_size.NAME, "task": task, "settings": words}
    rows = []
    for size in options.sizes:
        quality = common | {"size": size, "whole": False, "steps asked": options.steps, "preset": QUALITY}
        rows += [quality | {"contender": contender} for contender in ("ours", "stock")]
        if options.speedups:
            continue
        if size == options.whole_size:
            whole = {"whole": True, "steps asked": FULL_STEPS}
            rows += [quality | whole | {"contender": contender} for contender in ("ours", "stock")]
        own = {"contender": "ours", "whole": True, "steps asked": None}  # as many steps as the preset has
        rows += [quality | own | {"preset": preset} for preset in presets() if preset != QUALITY]
    arguments = {"folder": folder, "task": task, "settings": settings, "repeats": options.repeats}
    name = " ".join(filter(None, (task, words, "tiny" if tiny else "")))
    return resumable.Part(
        name, tuple(rows), interleaved.measure_in_turns, arguments, PART_NEEDS if real.gpu else 0, obstacle
    )


def presets() -> list[str]:
    """The presets that a job may ask for."""
    return [preset.value for preset in Preset]


def settings_of(words: list[str]) -> dict[str, str]:
    """Words of NAME=VALUE as our worker's settings. Ends the program where there is no such setting."""
    settings = dict(word.partition("=")[::2] for word in words)
    if unknown := sorted(set(settings) - set(Settings.model_fields)):
        raise SystemExit(f"The worker has no setting {', '.join(unknown)}")
    return settings
