"""The table of seconds that the deploy helper chooses cards by: a picture and an edit, for every card and layout.

Computed from the kernels of a step, as `step` has traced them, and the rates that cards attain (`rates.py`), for
1024x1024 with one input picture:

- In it: the passes through the transformer (each kernel by its arithmetic or by its bytes), one
  encoding of the prompt and, with guidance, one of the negative prompt, decoding and encoding by the VAE. A streamed
  text encoder takes the longer of its arithmetic and its way from RAM, 15.5 GB an encoding. Where transformers take
  turns, every job brings its own from RAM.
- Apart from it, as `prepare`: what a worker does before its first picture, once its files are there. Reading them takes
  `files GB` over a rate of `read GB/s` more.
- Not in it: the queue, RunPod's start of a container, downloads, uploads, a LoRA's own products.

Whole jobs that `fit` and `speed` have measured on a card stand under `measured`, and count before what is computed.
"""

import argparse
import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from qwen_deploy.cards import capability_of, describe_layout
from qwen_deploy.environment import worker_settings
from qwen_worker.checkpoints import checkpoint
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.jobs.presets import USUAL
from qwen_worker.memory import placement
from qwen_worker.memory.footprint import GB, Plan
from qwen_worker.model_settings import Precision, Saving
from qwen_worker.preset_settings import Preset
from qwen_worker.speed.compile_ahead import CompiledLoras, usual_passes, wanted_loras

from .measure.roofline import ATTENTION, ELEMENTWISE, Work, seconds
from .measure.stage_times import job_seconds
from .rates import BANDWIDTH_SHARE, CARDS, Card, card_of
from .report.rows import FULL_STEPS, MEASURED
from .step import read_works

RESULTS = Path(__file__).parent / "results"
SIZE = 1024
# By preset: steps, and passes of them that are computed. Guidance takes two a step; of `balanced`'s 30 steps the step
# cache predicts 12; `fast` has eight steps here, without guidance.
PRESETS = {
    Preset.QUALITY: (USUAL.steps, 100),
    Preset.BALANCED: (USUAL.balanced_steps, 36),
    Preset.FAST: (8, 8),
}
KINDS = ("generate", "edit", "edit plus")  # "edit": Qwen-Image-Edit; "edit plus": -2509 and -2511
PASSES_A_STEP = 2  # of guidance, in the account of a step
# TFLOP beside the passes: of one encoding with its vision tower, and of the VAE.
ENCODING = {"generate": 1.2, "edit": 27.4, "edit plus": 4.5}
VAE = {"generate": 4.7, "edit": 7.6, "edit plus": 7.6}
VAE_SHARE = 0.5  # of the rate of matrix products that convolutions attain
# NF4 is not traced. Its kernels are taken to be bfloat16's, with two differences: each matrix is unpacked before its
# product (0.52 bytes of a parameter read, 2 written, 2 read again), and the MLP's activation is a kernel of its own.
UNPACK_BYTES = 4.52
MODULATION_BYTES = 2  # of a parameter of it
WIDTH, WIDE = 3072, 12_288  # channels of a token, and of the same within an MLP
ACTIVATION_BYTES = 4  # read and written for each channel
OTHER_SECONDS = 0.3  # of a job: scheduler, noise, PNG
TEXT_ENCODER_GB = 15.5
FILES_GB = 57.7  # of one model
# A network volume gives 200 to 400 MB/s; a local disk is taken to give 1 GB/s.
READ_RATES = {"disk": 1.0, "volume": 0.3}
# A Python process with torch; one graph of the blocks, where nothing is kept. Estimates: no card has compiled one yet.
START_SECONDS, GRAPH_SECONDS = 15, 30
TABLE_GB = 17_000  # that building the modulation table reads of the card's memory


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fit", type=Path, default=RESULTS / "fit.json", help="what fit has recorded")
    parser.add_argument("--speed", type=Path, default=RESULTS / "speed.json", help="what speed has recorded")


def run(options: argparse.Namespace) -> tuple[list[dict], None]:
    """Write the table, a line for each card and layout. Nothing is left to show or to write."""
    rows = [row_of(card, plan) for card in CARDS for plan in layouts_of(card)]
    measured = list(measured_jobs(recorded(options.fit), recorded(options.speed)))
    head = {
        "benchmark": "computed", "size": SIZE, "files GB": FILES_GB, "read GB/s": READ_RATES,
        "presets": {preset.value: {"steps": steps, "passes": passes} for preset, (steps, passes) in PRESETS.items()},
    }  # fmt: skip
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    lines += [f'"{name}": [\n{joined(items)}\n]' for name, items in (("measured", measured), ("rows", rows))]
    options.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return [], None


def joined(items: list[dict]) -> str:
    return ",\n".join(json.dumps(item) for item in items)


def layouts_of(card: Card) -> list[Plan]:
    """The layouts that placement may choose on the card for one task or both; one of each description."""
    capability = capability_of(card.pool)
    assert capability is not None, card.pool
    precisions = [Precision.BF16, Precision.FP8, Precision.INT8, Precision.NF4]
    if capability < placement.FP8_CAPABILITY:
        precisions.remove(Precision.FP8)
    limit_bytes = card.memory * GB * placement.USABLE
    found: dict[str, Plan] = {}
    for names in (("Qwen/Qwen-Image",), ("Qwen/Qwen-Image-Edit",), ("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit")):
        checkpoints = [released for name in names if (released := checkpoint.released(name))]
        models = [as_model(each, checkpoints[:number]) for number, each in enumerate(checkpoints)]
        for savings in (frozenset(Saving), frozenset(Saving) - {Saving.TABLE}):
            for plan in placement.layouts(models, precisions, savings):
                if plan.peak_bytes(SIZE, SIZE, int(models[-1].edits), tiled=True) <= limit_bytes:
                    found.setdefault(describe_layout(plan), plan)
    return list(found.values())


def row_of(card: Card, plan: Plan) -> dict:
    table_seconds = TABLE_GB / (card.bandwidth * BANDWIDTH_SHARE) if plan.table else 0
    row = {"card": card.name, "pool": card.pool, "plan": describe_layout(plan)}
    row |= {kind: kind_seconds(card, plan, kind) for kind in KINDS}
    compile_seconds = GRAPH_SECONDS * graphs_at_start(plan.precision)
    return row | {"prepare": round(START_SECONDS + compile_seconds + table_seconds, 1)}


def graphs_at_start(precision: Precision) -> int:
    """How many graphs a worker with every default compiles for pictures: in 8 bits also those for jobs' LoRAs."""
    settings = worker_settings({})
    passes = usual_passes(settings, precision, references=0, shares_passes=True)
    has_loras = wanted_loras(settings, precision, has_preset_lora=False) is CompiledLoras.JOBS
    return len(passes) * (1 + has_loras)


def kind_seconds(card: Card, plan: Plan, kind: str) -> dict[str, float]:
    """Seconds of a job by preset, and of one pass."""
    one_pass = pass_seconds(card, plan, kind)
    jobs = {
        preset.value: round(passes * one_pass + other_seconds(card, plan, kind, guided=preset is not Preset.FAST), 2)
        for preset, (_, passes) in PRESETS.items()
    }
    return jobs | {"pass": round(one_pass, 4)}


def pass_seconds(card: Card, plan: Plan, kind: str) -> float:
    """Of one pass through the transformer."""
    traced = Precision.BF16 if plan.precision is Precision.NF4 else plan.precision
    works, more_bytes = account()[kind, SIZE, "ours", traced.value], 0.0
    if plan.precision is Precision.NF4:
        more_bytes += plan.models[0].parts["matrices"] * UNPACK_BYTES + activated_bytes(works) / PASSES_A_STEP
    if not plan.table:  # it was traced with the table: the modulation's weights are read in every pass
        more_bytes += plan.models[0].parts["modulation"] * MODULATION_BYTES
    more = Work(ELEMENTWISE, PASSES_A_STEP, 0, round(more_bytes))
    return seconds([*works, more], card) / PASSES_A_STEP


def activated_bytes(works: list[Work]) -> int:
    """What activations by kernels of their own read and write in a step. Each attention tells its block's tokens."""
    attentions = [work for work in works if work.kind == ATTENTION]
    tokens = sum(work.count * math.isqrt(work.flops // (4 * WIDTH)) for work in attentions)
    return tokens * WIDE * ACTIVATION_BYTES


@functools.cache
def account() -> dict[tuple[str, int, str, str], list[Work]]:
    """The kernels of a step, by kind, size, contender and precision."""
    return read_works(RESULTS / "step.json")


def other_seconds(card: Card, plan: Plan, kind: str, guided: bool) -> float:
    """Of a job beside its passes."""
    encoding = ENCODING[kind] / card.bf16
    if plan.text_encoder == "streamed":
        encoding = max(encoding, TEXT_ENCODER_GB / card.pcie)
    turn = plan.transformer_bytes(plan.models[0]) / GB / card.pcie if plan.swapped else 0
    return (1 + guided) * encoding + VAE[kind] / (card.bf16 * VAE_SHARE) + turn + OTHER_SECONDS


def recorded(path: Path) -> list[dict]:
    """The rows of a record, each with its device: None where the row is not measured."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    return [row | {"device": report["runs"][row["run"]]["device"] if row["run"] else None} for row in report["rows"]]


def measured_jobs(fit: list[dict], speed: list[dict]) -> Iterator[dict]:
    """Jobs of the released architecture that were measured on one of `CARDS`, with its whole memory.

    A whole job comes before one that follows from the seconds of some steps.
    """
    for row in sorted(fit + speed, key=lambda row: not row.get("whole")):
        card = card_of(row["device"])
        if card and is_ours(row) and ("cap GB" not in row or row["cap GB"] == card.memory):
            whole = row.get("whole")
            yield {
                "card": card.name,
                "plan": layout_words(row.get("plan", "")),
                "kind": row["task"],
                "preset": row.get("preset", Preset.QUALITY.value),
                "steps": row["steps"] if whole else FULL_STEPS,
                "seconds": round(row["job s"] if whole else job_seconds(row, FULL_STEPS), 2),
            }


def is_ours(row: dict) -> bool:
    """Whether the row is a measured job of ours at the table's size, of the real architecture with default settings."""
    ours = row.get("contender", row.get("part", "").partition("-")[0]) == "ours"
    real = row["checkpoint"] != "tiny" and row["measured"] == MEASURED
    # The steps of a preset other than quality do not tell the seconds of a whole job.
    known = row.get("whole") or row.get("preset", Preset.QUALITY.value) == Preset.QUALITY.value
    return ours and real and bool(known) and row["size"] == SIZE and not row.get("settings")


def layout_words(plan: str) -> str:
    """What `describe_layout` says of a plan that was recorded as text."""
    words = [plan.partition(" ")[0]]
    words += ["modulation table"] * ("modulation table" in plan) + ["take turns"] * ("transformers swapped" in plan)
    return ", ".join([*words, *re.findall(r"text encoder (?:streamed|quantized)", plan)])
