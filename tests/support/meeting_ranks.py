"""Two ranks up to their meeting: the first one's process has a model loaded, and says in JSON what came of it.

    python -m tests.support.meeting_ranks PLANTED_0 PLANTED_1
    python -m tests.support.meeting_ranks PLANTED_1 DESCRIPTOR PARENT

PLANTED_0 and PLANTED_1 are lines of Python that each process runs before. The model is none: nothing is read or drawn.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

MODEL = "org/model"


def run_first(planted: str, planted_on_second: str) -> None:
    from qwen_worker.loading import second_card
    from qwen_worker.settings import Settings
    from qwen_worker.speed.compile_ahead import CompiledLoras
    from qwen_worker.speed.speedups import Speed

    second_card.COMMAND = (sys.executable, "-m", "tests.support.meeting_ranks", planted_on_second)
    exec(planted, plantable())
    ended: list[int] = []
    card = second_card.SecondCard(Settings.model_validate({"QWEN_GPUS": "2"}), end=ended.append)
    load: Any = SimpleNamespace(model=MODEL, plan=SimpleNamespace(cards=2, device="cpu"))
    loaded: list[bool] = []
    for _ in range(2):
        card.begin_load(load)
        card.complete_load(MODEL, None, CompiledLoras.NONE)
        loaded.append(card.await_load(MODEL, Speed()))
    state = (card.report(MODEL) or {})["state"]
    print(json.dumps({"loaded": loaded, "state": state, "ended": ended, "lives": card.process is not None}))
    card.close()


def run_second(planted: str) -> None:
    from qwen_worker import second_rank
    from qwen_worker.loading.rank_messages import SpeedReport

    second_rank.SecondRank.load = lambda self, load: None
    second_rank.SecondRank.complete = lambda self, *_: ("a plan", SpeedReport.of(second_rank.speedups.Speed()))
    exec(planted, plantable())
    second_rank.main()


def plantable() -> dict[str, Any]:
    """By name, what planted lines change, and what they change it to."""
    from qwen_worker import second_rank
    from qwen_worker.errors import CudaSpoiledError
    from qwen_worker.loading import second_card
    from qwen_worker.ranks import channel, group

    def fail(*_: object) -> None:
        raise RuntimeError("a planted error")

    def spoiled(*_: object) -> None:
        raise CudaSpoiledError("a planted error")

    def end(*_: object) -> None:
        os._exit(3)

    def compute(*_: object) -> None:
        while True:
            pass

    changed = {"rank": second_rank.SecondRank, "group": group, "channel": channel, "second_card": second_card}
    return {**changed, "fail": fail, "spoiled": spoiled, "end": end, "compute": compute}


if __name__ == "__main__":
    place, *others = sys.argv[1:]
    if len(others) > 1:
        sys.argv.remove(place)
        run_second(place)
    else:
        run_first(place, *others)
