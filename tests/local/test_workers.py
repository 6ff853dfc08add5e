"""What happens to worker processes that end, and what the server says of it. They are programs of the tests here."""

import asyncio
import os
import sys

import pytest

from qwen_local.plane import Plane
from qwen_local.workers import Workers

from ..support.patience import until

ENDS = "import sys; print('no room'); sys.exit(3)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


@pytest.fixture
def workers(tmp_path):
    """workers(program): one that keeps processes of this program, and the lines that it says."""

    def of(program):
        lines = []
        command = (sys.executable, "-c", program)
        return Workers(Plane(), lambda name: {**os.environ, "NAME": name}, lines.append, tmp_path, command), lines

    return of


def test_workers_that_end_again_and_again_are_started_after_growing_pauses_and_it_is_said(workers):
    keeper, lines = workers(ENDS)

    async def watch():
        keeping = asyncio.create_task(keeper.keep(1))
        await until(lambda: len(lines) == 3)
        await keeper.end(asyncio.Event())
        await keeping

    asyncio.run(watch())
    assert lines[0].startswith("worker-1 ended with exit status 3 before it was ready; the next one starts now")
    assert lines[1].startswith("worker-2 ended with exit status 3 before it was ready; the next one starts in 1 s")
    assert "; 3 workers in a row have ended, so that the next one starts in 3 s. The last lines of" in lines[2]
    assert lines[2].endswith("worker-3.log:\n    no room") and not keeper.plane.workers


def test_a_worker_s_own_words_say_why_it_takes_no_jobs(workers):
    keeper, lines = workers(ENDS)

    async def watch():
        keeping = asyncio.create_task(keeper.keep(1))
        await until(lambda: keeper.processes)
        keeper.plane.hear_ping("worker-1", [], "generate: the folder holds no model_index.json")
        await until(lambda: lines)
        await keeper.end(asyncio.Event())
        await keeping

    asyncio.run(watch())
    assert lines[0].startswith("worker-1 takes no jobs: generate: the folder holds no model_index.json; the next one")


def test_a_worker_that_asks_for_it_is_replaced(workers):
    keeper, lines = workers("import time; time.sleep(600)")

    async def watch():
        keeping = asyncio.create_task(keeper.keep(1))
        await until(lambda: keeper.processes)
        keeper.plane.enter("worker-1")
        keeper.plane.tell("on_refresh", "worker-1")
        await until(lambda: "worker-2" in keeper.plane.workers)
        await keeper.end(asyncio.Event())
        await keeping

    asyncio.run(watch())
    assert lines[0].startswith("worker-1 ready after ")
    assert lines[1] == "worker-1 asks to be replaced, which happens now"
    assert lines[2] == "worker-1 was ended by signal 15; the next one starts now"


def test_a_second_ctrl_c_ends_a_worker_that_does_not_hear_the_first(workers, tmp_path):
    keeper, _ = workers(DEAF)

    async def watch():
        keeping = asyncio.create_task(keeper.keep(1))
        await until(lambda: (tmp_path / "worker-1.log").is_file() and "deaf" in (tmp_path / "worker-1.log").read_text())
        at_once = asyncio.Event()
        ending = asyncio.create_task(keeper.end(at_once))
        await asyncio.sleep(0.1)
        assert not ending.done()
        at_once.set()
        await until(lambda: ending.done() and keeping.done())

    asyncio.run(watch())
    assert not keeper.processes
