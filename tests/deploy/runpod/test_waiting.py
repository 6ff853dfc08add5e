"""Why a job waits, in words: by the workers' states, the log of one that starts, and the worker's own messages."""

import pytest

from qwen_deploy.runpod.api import Api
from qwen_deploy.runpod.client import Client, Clock
from qwen_deploy.runpod.start_log import Start
from qwen_deploy.runpod.waiting import Waiting

from ..conftest import NEW
from ..fake_runpod import KEY, Build

# As the platform's system log has them while it pulls an image of two layers.
PULL = (
    "create container docker.io/you/qwen-image:v1",
    "pending image pull docker.io/you/qwen-image:v1",
    "316f8cbc3be8 Downloading [>          ]  500MB/5GB",
    "a1b2c3d4e5f6 Downloading [==>        ]  100MB/1GB",
    "316f8cbc3be8 Downloading [==>        ]  2.5GB/5GB",
    "a1b2c3d4e5f6 Extracting [=========> ]  900MB/1GB",
    "316f8cbc3be8 Pull complete",
    "start container for docker.io/you/qwen-image:v1: begin",
)


@pytest.fixture
def waiting(runpod, clock):
    endpoint = runpod.add(NEW, workers=0)
    return Waiting(Api(Client(KEY, runpod.url, Clock(clock.now, clock.pause))), endpoint["id"])


def worker(state):
    return {"id": "w1", "status": state, "isStale": False, "gpuCount": 1}


@pytest.mark.parametrize(("states", "words"), [
    ([], "no worker yet: RunPod looks for a host"),
    (["THROTTLED"], "throttled: no card is free for 1 worker"),
    (["THROTTLED", "THROTTLED"], "throttled: no card is free for 2 workers"),
    (["THROTTLED", "INITIALIZING"], "a worker starts: RunPod prepares its host"),
    (["RUNNING", "INITIALIZING"], "the workers that are ready are busy (1)"),
    (["RUNNING", "IDLE"], "a worker is ready"),
    (["UNHEALTHY"], "unhealthy: 1 worker; see `logs`"),
])  # fmt: skip
def test_a_job_in_the_queue_waits_for_what_its_workers_wait_for(waiting, states, words):
    assert waiting.describe_workers([worker(state) for state in states]) == f"{words} · 0 s"


def test_the_seconds_are_those_of_the_reason_and_begin_anew_with_the_next_one(waiting, clock):
    throttled, starting = [worker("THROTTLED")], [worker("INITIALIZING")]
    assert waiting.describe_workers(throttled).endswith(" · 0 s")
    clock.pause(40)
    assert waiting.describe_workers(throttled).endswith(" · 40 s")
    assert waiting.describe_workers(starting).endswith(" · 0 s")
    clock.pause(7)
    assert waiting.describe_workers(starting).endswith(" · 7 s")


def test_a_pulled_image_is_counted_in_bytes_with_its_rate(clock):
    start = Start()
    said = []
    for count in (1, 2, 4, 6, 7, 8):
        clock.pause(10)
        start.read(PULL[:count], clock.now())
        said.append(start.describe())
    assert said == [
        "RunPod prepares its host",
        "the image is pulled",
        "the image is pulled: 0.6 of 6.0 GB, 60 MB/s, about 90 s left",
        "the image is pulled: 3.5 of 6.0 GB, 290 MB/s, about 9 s left",
        "the image is pulled: 6.0 of 6.0 GB, 250 MB/s, about 0 s left",
        "its container starts, and the worker in it",
    ]


def test_send_follows_a_cold_start_from_the_host_to_the_picture(runpod, command):
    runpod.add(NEW, workers=0)
    loads = [{"stage": "loading", "step": 0, "total": 50, "percent": 0, "load": {"stage": "download", "bytes": done,
              "total_bytes": 57_700_000_000}} for done in (1_000_000_000, 1_620_000_000)]  # fmt: skip
    read = {"stage": "loading", "step": 0, "total": 50, "percent": 0, "load": {"stage": "read"}}
    drawing = {"stage": "drawing", "step": 3, "total": 50, "percent": 6, "seconds_left": 14.6}
    early = ("THROTTLED", "THROTTLED", *["INITIALIZING"] * 8)
    runpod.builds[NEW] = Build(early_states=early, start_log=("", "", *PULL), progress=(*loads, read, drawing))
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    assert code == 0, text
    for words in (
        "in queue · throttled: no card is free for 1 worker · 0 s",
        "in queue · a worker starts: RunPod prepares its host · 0 s",
        "in queue · a worker starts: the image is pulled: 0.5 of 5.0 GB, 25 MB/s, about 180 s left · 0 s",
        "in queue · a worker starts: the image is pulled: 2.6 of 6.0 GB, 105 MB/s, about 32 s left · 30 s",
        "in progress · the model is loaded, download 1.0 of 57.7 GB · 0 s",
        "in progress · the model is loaded, download 1.6 of 57.7 GB, 310 MB/s, about 181 s left · 2 s",
        "in progress · the model is loaded, read · 4 s",
        "in progress · drawing, step 3/50, 15 s left · 0 s",
    ):
        assert words in text, text


@pytest.mark.parametrize(("output", "words"), [
    (None, "in progress · 0 s"),
    ("anything", "in progress · 0 s"),
    ({"stage": "opening"}, "in progress · pictures and LoRAs of the job are fetched · 0 s"),
    ([{"stage": "opening"}, {"stage": "loading"}], "in progress · the model is loaded · 0 s"),  # as with STREAM=1
    ({"stage": "a new one"}, "in progress · a new one · 0 s"),
    ({"stage": "loading", "load": {"stage": "download", "bytes": 5, "total_bytes": 0}},
     "in progress · the model is loaded, download · 0 s"),
])  # fmt: skip
def test_a_running_job_is_told_by_the_worker_s_own_message(waiting, output, words):
    status = {"id": "j", "status": "IN_PROGRESS"} | ({"output": output} if output else {})
    assert waiting.describe_job(status) == words


def test_a_deployment_says_what_it_waits_for(runpod, command):
    runpod.add()
    runpod.builds[NEW].early_states = ("THROTTLED",) * 3 + ("INITIALIZING",) * 9
    runpod.builds[NEW].start_log = ("", "", "", *PULL)
    runpod.builds[NEW].progress = ({"stage": "drawing", "step": 3, "total": 50, "seconds_left": 9.0},)
    code, text = command("--registry", "docker.io/you", "--tag", "v1", "--skip-build", "--yes")
    assert code == 0, text
    for words in (
        "worker version v0 answered · throttled: no card is free for 1 worker · 0 s",
        "health · a worker starts: RunPod prepares its host · 0 s · 7 s in all",
        "health · a worker starts: the image is pulled: 2.6 of 6.0 GB · 0 s · 15 s in all",
        "generate · in progress · drawing, step 3/50, 9 s left",
    ):
        assert words in text, text


def test_where_there_is_no_terminal_a_long_wait_has_few_lines(runpod, command):
    runpod.add(NEW, workers=0)
    runpod.builds[NEW].early_states = ("THROTTLED",) * 30
    code, text = command("send", "--endpoint-id", "ep1", "a fox")
    seconds = [int(line.split()[-2]) for line in text.splitlines() if "throttled" in line]
    assert code == 0 and seconds == list(range(0, 300, 30))
