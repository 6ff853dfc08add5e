"""A worker process's start with compiled blocks; what it compiled and how far its passes are from stock's, as JSON.

python -m tests.support.compiled_start FOLDER PRECISION BATCH
"""

import json
import sys
from pathlib import Path

from qwen_worker.loading.catalogue import Catalogue
from qwen_worker.loading.pipelines import Pipelines
from qwen_worker.settings import Settings

from ..conftest import ROOT
from ..speed.test_speedups import SHAPES, difference


def main(folder: Path, precision: str, batch: int) -> dict:
    from torch._dynamo.utils import counters

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
    return {
        "differences": found,
        "speedups": {task: str(one.speed) for task, one in loaded.items()},
        "graphs": counters["stats"]["unique_graphs"],
        "compiled": counters["inductor"]["fxgraph_cache_miss"],
        "found": counters["inductor"]["fxgraph_cache_hit"],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
