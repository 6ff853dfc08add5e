"""What fits which card: plans and predicted peaks, and on a GPU the measured ones, each cap in a process of its own.

`--full-size FOLDER` writes the released architecture with random weights there (57.7 GB) and serves it; without, the
tiny checkpoint is served. `QWEN_VRAM_GB` is the cap: torch refuses to go beyond it. Where there is no GPU the rows hold
what is planned for such a card, and "not measured". The command for a GPU:

    python -m benchmarks fit --full-size /tmp/full-size --vram-gb 24 48 80 141
"""

import multiprocessing
import os
from pathlib import Path

from qwen_worker import checkpoint, placement
from qwen_worker.errors import LoadError
from qwen_worker.footprint import GB
from qwen_worker.machine import Gpu, Machine, read_gpu, read_machine

TINY = Path(__file__).parents[1] / "models/tiny-qwen-image"
CARDS = {16: (8, 9), 24: (8, 9), 32: (12, 0), 48: (8, 9), 80: (9, 0), 96: (12, 0), 141: (9, 0)}
NOT_MEASURED = "not measured"


def add_options(parser) -> None:
    parser.add_argument("--vram-gb", type=float, nargs="+", default=list(CARDS), help="caps in GB (default: all cards)")
    parser.add_argument("--full-size", type=Path, help="folder for full-size checkpoints with random weights")
    parser.add_argument("--tasks", nargs="+", choices=("generate", "edit"), default=["generate", "edit"])
    parser.add_argument("--size", type=int, default=1024, help="side in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of a job (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=3, help="jobs of each task, in turns (default: %(default)s)")
    parser.add_argument("--trial", action="store_true", help="serve on this CPU too, to try the command")
    parser.add_argument("--precision", default="auto", help="as QWEN_PRECISION (default: %(default)s)")


def run(options) -> tuple[list[dict], dict]:
    folder = options.full_size or TINY
    if options.full_size and not (folder / "edit").exists():
        from .full_size import write

        write(folder)
    rows = []
    for cap in options.vram_gb:
        row = {"cap GB": cap} | predicted(folder, cap, options)
        rows.append(row | (measured(folder, cap, options) if measurable(cap, options) else {"measured": NOT_MEASURED}))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    gpu = read_gpu()
    return rows, {
        "gpu": gpu.name if gpu else None,
        "checkpoint": "full size, random weights" if options.full_size else "tiny",
        "predicted for": "Qwen/Qwen-Image and Qwen/Qwen-Image-Edit",
        "size": options.size,
        "steps": options.steps,
    }


def predicted(folder: Path, cap: float, options) -> dict:
    """The plan for the released models on a card of that size, by arithmetic alone."""
    from qwen_worker.pipelines import as_model
    from qwen_worker.settings import Precision

    released = {"generate": "Qwen/Qwen-Image", "edit": "Qwen/Qwen-Image-Edit"}
    models, before = [], []
    for task in options.tasks:
        found = checkpoint.known(released[task])
        models.append(as_model(found, before))
        before.append(found)
    memory = round(cap * GB)
    gpu = read_gpu() or Gpu(f"a card of {cap:g} GB", CARDS.get(int(cap), (9, 0)), memory, memory)
    machine = Machine(gpu, round(128 * GB), round(128 * GB))
    try:
        plan = placement.plan(models, machine, Precision(options.precision), memory)
    except LoadError as refused:
        return {"plan": f"refused: {refused.reason}"}
    images = int("edit" in options.tasks)
    return {"plan": str(plan), "predicted peak GB": round(plan.peak(options.size, options.size, images) / GB, 2)}


def measurable(cap: float, options) -> bool:
    gpu = read_gpu()
    return options.trial if gpu is None else cap * GB <= gpu.total


def measured(folder: Path, cap: float, options) -> dict:
    """Jobs of every task in turns, in a fresh process: a card's memory is only free again when its process is gone."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender, str(folder), cap, vars(options)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return {"measured": "the process ended without a result"}
    finally:
        process.join()


def serve(sender, folder: str, cap: float, options: dict) -> None:
    """In the process of one cap: send what was measured."""
    import asyncio
    import base64
    import io

    from PIL import Image

    from qwen_worker.settings import Settings
    from runpod_handler import Worker

    os.environ["RUNPOD_DEBUG_LEVEL"] = "ERROR"
    worker = Worker(
        Settings(
            QWEN_IMAGE_MODEL=f"{folder}/generate" if "generate" in options["tasks"] else "/none",
            QWEN_EDIT_MODEL=f"{folder}/edit" if "edit" in options["tasks"] else "/none",
            QWEN_VRAM_GB=cap,
            QWEN_FALLBACK="forbid",
            QWEN_PRECISION=options["precision"],
        )
    )
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((options["size"],) * 2).save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    common = {"prompt": "a red circle on the left", "num_inference_steps": options["steps"], "seed": 1}
    common |= {"width": options["size"], "height": options["size"]}
    row, used = {}, []
    for number in range(options["jobs"]):
        for task in options["tasks"]:
            fields = common | {"task": task} | ({"image": source} if task == "edit" else {})
            reply = asyncio.run(worker.answer({"id": f"{task}-{number}", "input": fields}))
            if "error" in reply:
                sender.send({"measured": reply["error"]})
                return
            facts = reply["metadata"]
            used.append(facts.get("peak_vram_gb") or 0.0)
            row[f"{task} s"] = round(facts["timings"]["inference"], 2)
            if "swap" in facts["timings"]:
                row[f"{task} swap s"] = round(facts["timings"]["swap"], 2)
    row["served plan"] = str(next(iter(worker.pipelines.loaded.values())).plan)
    row["load s"] = round(sum(one.seconds for one in worker.pipelines.loaded.values()), 1)
    row["reserved peak GB"] = max(used) or NOT_MEASURED
    row["whole card GB"] = card_in_use() or NOT_MEASURED
    sender.send(row)


def card_in_use() -> float | None:
    """What the card has in use now, the CUDA context and the allocator's cache included, in GB."""
    gpu = read_machine().gpu
    return round((gpu.total - gpu.free) / GB, 2) if gpu else None
