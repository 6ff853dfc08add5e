"""What the workers' states and logs are judged as."""

import contextlib

import pytest

from qwen_deploy.errors import NotServing
from qwen_deploy.runpod.api import Api
from qwen_deploy.runpod.client import Client
from qwen_deploy.runpod.rollout import Watch

from ..conftest import NEW
from ..fake_runpod import KEY, Build


@pytest.mark.parametrize(("starts", "was_ready", "is_loop"), [
    (2, False, False), (3, False, True),
    (5, True, False), (6, True, True),  # the platform starts a ready worker again after each rest
])  # fmt: skip
def test_starts_of_one_container_are_a_crash_loop(runpod, starts, was_ready, is_loop):
    endpoint_id = runpod.add(NEW, workers=0)["id"]
    worker = runpod.start(endpoint_id)
    watch = Watch(Api(Client(KEY, runpod.url)), endpoint_id, None, 60, 60, print)
    if was_ready:
        watch.look()
    runpod.builds[NEW], worker.starts = Build(crashes=True), starts
    with pytest.raises(NotServing, match="Crash loop") if is_loop else contextlib.nullcontext():
        watch.judge_log(worker.id, [line for _, line in runpod.log(worker.id, "system")])
