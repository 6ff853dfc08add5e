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


def live(card: Card, models: list[str], jobs: int = 0, brief: bool = False) -> dict[str, Any]:
    """The rows of the jobs of one worker, and what it has come to.

    `jobs`: how many more are drawn in the end, to see whether anything stays behind; `brief`: each task at one size.
    """
    from .served import Served

    served = Served(card, **{TASK[model]: model for model in models})
    tasks = {TASK[model]: MOST_REFERENCES[model] for model in models}
    rows = [draw(served, what, *wanted) for what, *wanted in wanted_jobs(served, tasks, brief)]
    first = next(iter(tasks))
    wanted = (first, SIDE, SIDE, min(1, tasks[first]))
    after_lora = draw(served, "with a LoRA", *wanted, loras=[{"path": "lora.safetensors"}])
    stopped = served.stop_inside(STOPPED_IN, *wanted)
    after_stop = draw(served, "after a stop", *wanted)
    short = without_room(served, first, *largest(served.plan(first), wanted[-1]), wanted[-1])
    after_short = draw(served, "after others took the card", *wanted)
    held = served.held()
    after = [draw(served, "again", task, SIDE, SIDE, min(1, most)) for task, most in list(tasks.items()) * (jobs // 2)]
    return {
        "rows": [*rows, after_lora, after_stop, after_short],
        "after": [row["code"] for row in after],
        "refused": refused(served, tasks),
        "stopped": stopped,
        "short": short,
        "held": [held, served.held()],
        "resident": served.resident(),
    }


def wanted_jobs(served: Any, tasks: dict[str, int], brief: bool) -> list[tuple[str, str, int, int, int]]:
    """(what it is, task, width, height, references) of the jobs that the plan has room for."""
    found = []
    for task, most in tasks.items():
        counts = range(1, most + 1) if most else [0]
        found += [("a megapixel", task, SIDE, SIDE, count) for count in counts]
        if not brief:
            sizes = {count: largest(served.plan(task), count) for count in {min(1, most), most}}
            found += [("the largest", task, *size, count) for count, size in sizes.items()]
    first, *others = tasks
    return [*found, *(("swapped back", first, SIDE, SIDE, min(1, tasks[first])) for _ in others)]


def largest(plan: Any, references: int) -> tuple[int, int]:
    """The largest square that the plan has room for."""
    if plan.fits(LARGEST, LARGEST, references):
        return LARGEST, LARGEST
    return plan.largest(LARGEST, LARGEST, MULTIPLE, references)


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
