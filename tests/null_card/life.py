"""A worker's life on one card: every task and size, a LoRA, a stop, memory that runs out; and what each job took.

Called in a process with a null card. Imports torch inside functions.
"""

from dataclasses import asdict
from typing import Any

from .card import Card

SIDE, LARGEST = 1024, 2048
MULTIPLE = 16  # of sides
STOPPED_IN = 30  # the transformer's block, of 60
LEFT = 64 << 20  # bytes of the card that others leave in the end
TASK = {"generate": "generate", "edit": "edit", "edit_plus": "edit"}
MOST_REFERENCES = {"generate": 0, "edit": 1, "edit_plus": 3}


def live(card: Card, models: list[str], compiled: bool = False, jobs: int = 0, brief: bool = False) -> dict[str, Any]:
    """The rows of one worker's jobs, and what else it has come to.

    `jobs`: how many more are drawn in the end, to see whether anything stays behind; `brief`: each task at one size.
    """
    served, tasks = served_for(card, models, compiled)
    first, loading, rows = next(iter(tasks)), {}, []
    for task, most in tasks.items():
        loading[task] = served.load(task)
        rows += [draw(served, what, task, *wanted) for what, *wanted in sizes(served.plan(task), most, brief)]
    wanted = first, SIDE, SIDE, min(1, tasks[first])
    found = {"rows": rows, "loading": loading, "refused": refused(served, tasks), **facts_of(served, first)}
    if len(tasks) > 1:
        rows.append(draw(served, "the other model again", *wanted))
    rows.append(draw(served, "with a LoRA", *wanted, loras=[{"path": "lora.safetensors"}]))
    found["stopped"] = served.stop_inside(STOPPED_IN, *wanted)
    rows.append(draw(served, "after a stop", *wanted))
    found["without room"] = without_room(served, first, *largest(served.plan(first), wanted[-1]), wanted[-1])
    rows.append(draw(served, "after others held the card", *wanted))
    before = served.held()
    after = [draw(served, "again", task, SIDE, SIDE, min(1, tasks[task]))["code"] for task in turns(tasks, jobs)]
    return found | {"after": after, "held": [before, served.held()], "resident": served.resident()}


def served_for(card: Card, models: list[str], compiled: bool = False) -> tuple[Any, dict[str, int]]:
    """A worker of these checkpoints, and the most references of each of its tasks."""
    from .served import Served

    names = {model: model.rpartition("/")[2] for model in models}
    settings = {"QWEN_SPEEDUPS": "auto"} if compiled else {}
    served = Served(card, **{TASK[name]: model for model, name in names.items()}, **settings)
    return served, {TASK[name]: MOST_REFERENCES[name] for name in names.values()}


def draw_in_turn(card: Card, models: list[str], jobs: list[tuple[str, int, int, int]]) -> list[dict[str, Any]]:
    """The rows of a new worker's jobs, each (task, width, height, references); all its models are loaded before."""
    served, tasks = served_for(card, models)
    for task in tasks:
        served.load(task)
    return [draw(served, f"job {number}", *wanted) for number, wanted in enumerate(jobs)]


def draw_with_loras(card: Card, models: list[str], steps: int) -> dict[str, Any]:
    """The rows of a new worker's jobs with compiled blocks: without a LoRA, twice with one, and without.

    `graphs`: how many were traced by the end of each job; `failures`: of the speed-ups, by name.
    """
    from torch._dynamo.utils import counters

    served, tasks = served_for(card, models, compiled=True)
    task, most = next(iter(tasks.items()))
    wanted, loras = (task, SIDE, SIDE, min(1, most)), {"loras": [{"path": "lora.safetensors"}]}
    rows, graphs = [], []
    for more in ({}, loras, loras, {}):
        rows.append(draw(served, "with a LoRA" if more else "without", *wanted, num_inference_steps=steps, **more))
        graphs.append(counters["stats"]["unique_graphs"])
    return {"rows": rows, "graphs": graphs, "failures": served.loaded(task).speed.failures}


def turns(tasks: dict[str, int], jobs: int) -> list[str]:
    """The tasks of so many jobs, one after the other."""
    return (list(tasks) * jobs)[:jobs]


def sizes(plan: Any, most: int, brief: bool) -> list[tuple[str, int, int, int]]:
    """(what it is, width, height, references) of the jobs that one task is tried with."""
    counts = range(1, most + 1) if most else [0]
    if brief:
        return [("a megapixel", SIDE, SIDE, most)]
    found = [("a megapixel", SIDE, SIDE, count) for count in counts]
    for count in sorted({min(1, most), most}):
        if size := largest(plan, count):
            found.append(("the largest", *size, count))
    return found


def largest(plan: Any, references: int) -> tuple[int, int] | None:
    """The largest square that the plan has room for; None where it has room for none."""
    if plan.fits(LARGEST, LARGEST, references):
        return LARGEST, LARGEST
    return plan.largest_size(LARGEST, LARGEST, MULTIPLE, references)


def facts_of(served: Any, task: str) -> dict[str, Any]:
    plan = served.plan(task)
    return {"plan": str(plan), "limit": plan.limit_bytes, "weights": plan.weight_bytes, "pinned": plan.pinned_bytes}


def draw(served: Any, what: str, task: str, width: int, height: int, references: int, **more: Any) -> dict[str, Any]:
    """The row of a job. `code`: ok, or the error's."""
    reply, figures = served.draw(task, width, height, references, **more)
    row = {"what": what, "task": task, "size": f"{width}x{height}", "references": references}
    return row | {"code": code_of(reply), "words": reply.get("error")} | asdict(figures)


def code_of(reply: dict[str, Any]) -> str:
    return reply["error"].partition(":")[0] if "error" in reply else "ok"


def refused(served: Any, tasks: dict[str, int]) -> list[str]:
    """The answers to jobs of the largest size with the most references, where the plan has no room for them."""
    found = []
    for task, most in tasks.items():
        if not served.plan(task).fits(LARGEST, LARGEST, most):
            found.append(served.ask(task, LARGEST, LARGEST, most).get("error", "drawn"))
    return found


def without_room(served: Any, *wanted: Any) -> str:
    """The code of a job's answer while others hold all of the card that is free."""
    import torch

    from . import fields

    served.on_inference_thread(torch.cuda.empty_cache)
    before = fields.read("others")
    fields.put(others=fields.read("memory") - fields.read("used") - fields.read("context") - LEFT)
    try:
        return code_of(served.ask(*wanted))
    finally:
        fields.put(others=before)
