"""A worker on the tiny checkpoint, on this machine's own card or processor, or on a card without arithmetic.

Needs neither RunPod's SDK nor its job loop. Knows nothing of what is asked of the worker.
"""

import asyncio
from pathlib import Path
from typing import Any

from ..conftest import ROOT
from ..null_card.card import Card

TINY = ROOT / "models/tiny-qwen-image"
JOB = {"task": "generate", "prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}

SERVED: list[Any] = []  # what tells torch of the null card, for as long as this process lives


def start(card: Card | None, folder: Path, **settings: Any) -> Any:
    """A worker that has loaded nothing; its notes and compiled blocks are in the folder.

    `card`: the null card of this process, if it has one.
    """
    models = {"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit")}
    own = models | {"QWEN_COMPILED_FOLDER": str(folder), "QWEN_SELF_CHECK": "off"} | settings
    if card:
        from ..null_card.served import Served

        SERVED.append(Served(card, own.pop("QWEN_IMAGE_MODEL"), own.pop("QWEN_EDIT_MODEL"), **own))
        return SERVED[-1].worker
    import runpod_handler
    from qwen_worker.settings import Settings

    return runpod_handler.Worker(Settings(QWEN_MODEL_ROOTS=(), **own))


def ask(worker: Any, _name: str = "job", **fields: Any) -> dict[str, Any]:
    """The reply to a job with these fields alone."""
    return asyncio.run(worker.answer({"id": _name, "input": fields}))
