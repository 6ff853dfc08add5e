"""A worker process's start with compiled blocks, load by load: how far its passes are from stock's, what it compiled.

python -m tests.support.compiled_start FOLDER PRECISION:BATCH ...

Prints a list as JSON, one object for each load.
"""

import json
import sys
from pathlib import Path

import torch

from qwen_worker.loading import self_check
from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.loaded import LoadedPipeline
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.loading.subject import Subject
from qwen_worker.settings import Settings

from ..conftest import ROOT
from ..speed.test_speedups import SHAPES, difference, pass_of


def main(folder: Path, loads: list[str]) -> list[dict]:
    facts = []
    for precision, batch in (load.split(":") for load in loads):
        before, kept = counts(), stamps(folder)
        found = loaded(folder, precision, int(batch))
        now = {name: count - before[name] for name, count in counts().items()}
        facts.append(found | now | {"kept": stamps(folder) != kept})
    return facts


def loaded(folder: Path, precision: str, batch: int) -> dict:
    tiny = ROOT / "models/tiny-qwen-image"
    settings = Settings(
        QWEN_IMAGE_MODEL=str(tiny / "generate"),
        QWEN_EDIT_MODEL=str(tiny / "edit"),
        QWEN_PRECISION=precision,
        QWEN_SPEEDUPS="compile,rotary",
        QWEN_COMPILED_FOLDER=folder,
    )
    pipelines = Pipelines(settings, Catalogue(settings))
    loaded = {task: pipelines.load(task) for task in SHAPES}
    found = {}
    for task, one in loaded.items():
        for tokens in (9, 14):
            found[f"{task} {tokens}"] = difference(one.pipe.transformer, task, precision, batch, tokens=tokens)
    with loaded["edit"].speed.drawing():  # a job's end keeps what it has compiled
        pass
    checks = {task: checked(one) for task, one in loaded.items()}
    speed = {task: str(one.speed) for task, one in loaded.items()}
    known = {task: same_unchecked(one, task, batch) for task, one in loaded.items()}
    return {"differences": found, "checks": checks, "speedups": speed, "known": known}


def same_unchecked(loaded: LoadedPipeline, task: str, batch: int) -> bool:
    """Whether a pass of which torch checks no block is the same to the bit."""
    transformer, blocks = loaded.pipe.transformer, loaded.speed.blocks
    plain = pass_of(transformer, task, batch)
    with loaded.speed.drawing():
        passes = [pass_of(transformer, task, batch) for _ in range(2)]
        remembered = len(blocks.compiled.found)
    return remembered == len(transformer.transformer_blocks) and all(torch.equal(one, plain) for one in passes)


def checked(loaded: LoadedPipeline) -> dict[str, bool]:
    """Of each finding of the self-check, whether it passed."""
    parts = loaded.model, loaded.checkpoint, loaded.plan, loaded.pipe, loaded.table, loaded.speed, None, ("vae",)
    return {finding.name: finding.passed for finding in self_check.compare_all(Subject(*parts))}


def counts() -> dict[str, int]:
    """Graphs that torch has traced in this process, and of them those that it compiled or found compiled."""
    from torch._dynamo.utils import counters

    found = {"graphs": counters["stats"]["unique_graphs"]}
    names = {"compiled": "fxgraph_cache_miss", "found": "fxgraph_cache_hit"}
    return found | {name: counters["inductor"][theirs] for name, theirs in names.items()}


def stamps(folder: Path) -> dict[str, int]:
    """When each file of compiled blocks was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.compiled")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
