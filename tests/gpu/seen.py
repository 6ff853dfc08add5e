"""What a worker on the tiny checkpoint does on a card, as facts that a test judges.

Each function is called with the null card of its process, or with None where the card is real; what it returns is
JSON's. Imports torch inside functions.
"""

from pathlib import Path
from typing import Any

from ..null_card.card import Card
from ..support import tiny_worker
from ..support.tiny_worker import JOB

SPARED = 8 << 20  # bytes of the card that are left beside a ballast: too few for the weights, and for any picture
LARGE = JOB | {"width": 1024, "height": 1024}
UNCOMPILED = {"QWEN_SPEEDUPS": "rotary,guidance,attention", "QWEN_FALLBACK": "forbid"}


def on_inference_thread(worker: Any, work: Any) -> Any:
    return worker.inference_thread.submit(work).result()


def ballast() -> Any:
    """A tensor that takes all of the card that this process may have but `SPARED`, in pieces that can be had."""
    import torch

    held, size = [], torch.cuda.mem_get_info()[0]
    while size > SPARED:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return held


def code_of(reply: dict[str, Any]) -> str:
    return reply["error"].partition(":")[0] if "error" in reply else "ok"


def see_job_without_room(card: Card | None, folder: str) -> dict[str, Any]:
    """A job while the card is full, and the same job afterwards."""
    import torch

    worker = tiny_worker.start(card, Path(folder), **UNCOMPILED)
    before = tiny_worker.ask(worker, **JOB)
    held = on_inference_thread(worker, ballast)
    ran_out = torch.cuda.memory_stats()["num_ooms"]
    full = tiny_worker.ask(worker, **LARGE)
    ran_out = torch.cuda.memory_stats()["num_ooms"] - ran_out
    on_inference_thread(worker, held.clear)
    on_inference_thread(worker, torch.cuda.empty_cache)
    after = tiny_worker.ask(worker, **LARGE)
    return {
        "replies": [code_of(reply) for reply in (before, full, after)],
        "ran out": ran_out,
        "words": full.get("error", ""),
    }


def see_load_without_room(card: Card | None, folder: str) -> dict[str, Any]:
    """A load while the card is full, and another one afterwards."""
    import torch

    settings = UNCOMPILED | {"QWEN_LOAD_RETRY_SECONDS": "0"}
    worker = tiny_worker.start(card, Path(folder), **settings)
    torch.cuda.init()
    held = on_inference_thread(worker, ballast)
    full = tiny_worker.ask(worker, **JOB)
    on_inference_thread(worker, held.clear)
    on_inference_thread(worker, torch.cuda.empty_cache)
    after = tiny_worker.ask(worker, **JOB)
    return {"replies": [code_of(reply) for reply in (full, after)], "words": full.get("error", "")}


def see_jobs_in_turn(card: Card | None, folder: str, jobs: int) -> list[dict[str, int]]:
    """What is held after each of so many jobs, pictures and edits by turns, in bytes."""
    import torch

    from ..null_card.served import reference

    worker = tiny_worker.start(card, Path(folder), **UNCOMPILED)
    held = []
    for number in range(jobs):
        fields = JOB | {"task": "edit", "image": reference(), "draw_size": "asked"} if number % 2 else JOB
        reply = tiny_worker.ask(worker, f"job-{number}", **fields | {"seed": number})
        assert code_of(reply) == "ok", reply
        pinned = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
        held.append(
            {
                "reserved": torch.cuda.memory_reserved(),
                "allocated": torch.cuda.memory_allocated(),
                "pinned": pinned,
            }
        )
    return held


def see_refused_pin(card: Card | None) -> dict[str, Any]:
    """How the worker takes a request for more pinned memory than the machine has, and what can be done afterwards."""
    import psutil
    import torch

    from qwen_worker.errors import is_out_of_memory
    from qwen_worker.memory import cuda
    from qwen_worker.model.host_memory import Pinning

    torch.cuda.init()
    pinning, size = Pinning(), 4 * (psutil.virtual_memory().total + psutil.swap_memory().total)
    if card:
        from ..null_card import fields

        fields.put(pinned_limit=1 << 29)
    try:
        torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return {"refused": False}
    except RuntimeError as error:
        pinning.record(error)
        found = {"refused": is_out_of_memory(error), "spoiled": cuda.has_spoiled(error), "words": pinning.refusal}
    kept = pinning.empty((1 << 20,), torch.uint8)
    pinning.resume()
    again = pinning.empty((1 << 20,), torch.uint8)
    sums = torch.ones(3, device="cuda") + 1
    torch.cuda.synchronize()
    return found | {"then": [kept.is_pinned(), again.is_pinned(), sums.shape[0]]}
