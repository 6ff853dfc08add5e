"""The worker process in the SDK's own loop, against a control plane on loopback: jobs, stops, SIGTERM."""

import time

import pytest

from ..conftest import environment_of, file_of, picture_of, respond, serve
from ..support.control_plane import ControlPlane, WorkerProcess, addresses

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}
LONG = {**SMALL, "num_inference_steps": 100, "width": 512, "height": 512}


def test_jobs_are_taken_one_is_stopped_and_sigterm_ends_an_idle_worker_at_once(environment, web):
    plane = ControlPlane(hold=30)
    with WorkerProcess(environment(QWEN_PROGRESS_SECONDS="0.1", **addresses(web(plane)))) as worker:
        plane.put("good-1", SMALL)
        first = plane.result("good-1")
        assert first["output"]["metadata"]["backend"] == "qwen-image"
        plane.put("long", LONG)
        plane.wait(lambda: plane.steps("long") > 1)
        plane.stop("long")
        plane.put("good-2", {**SMALL, "seed": first["output"]["metadata"]["seed"]})
        second = plane.result("good-2")
        assert second["output"]["image"] == first["output"]["image"]
        assert "long" not in plane.bodies
        plane.wait(lambda: plane.polls == 1)
        assert worker.terminate() == 0 and plane.polls == 1  # the poll for the next job is held on
    logged = worker.messages()
    assert any(one["requestId"] == "good-2" and "code=ok" in one["message"] for one in logged)


LISTENS = """
import runpod_handler
from qwen_worker.serving import job_loop
job_loop.EARLY_SECONDS = 600  # in its two seconds a busy machine may not hand out the job
runpod_handler.main()
"""


def test_a_stop_that_comes_before_the_job_is_begun_is_heard(environment, web, gate):
    plane, over = ControlPlane(), gate()
    silent = web(lambda handler: over.wait())
    private = {"QWEN_FALLBACK": "force", "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
    with WorkerProcess(environment(**private, **addresses(web(plane))), ("-c", LISTENS)) as worker:
        plane.put("first", SMALL)
        plane.result("first")
        asked = plane.counts["job-stop"]
        plane.stop("early")  # for no job that there is
        plane.wait(lambda: not plane.plane.stops and plane.counts["job-stop"] > asked)
        plane.put("early", {"prompt": "a", "image_url": silent})
        plane.wait(lambda: "early" in plane.taken)
        plane.put("next", SMALL)
        plane.result("next")
        assert "early" not in plane.bodies
        assert worker.terminate() == 0
    assert any(one["requestId"] == "early" and "code=cancelled" in one["message"] for one in worker.messages())


def test_sigterm_lets_the_running_job_finish(environment, web):
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_SHUTDOWN_SECONDS="3600", **addresses(web(plane)))) as worker:
        plane.put("warm", SMALL)
        plane.result("warm")
        plane.put("running", {**SMALL, "num_inference_steps": 40})
        plane.wait(lambda: "progress" in plane.kinds("running"))
        plane.put("waiting", SMALL)
        assert worker.terminate() == 0
        assert plane.result("running")["output"]["success"]
        assert "waiting" not in plane.taken


def test_past_the_grace_sigterm_ends_the_job_and_the_platform_may_hand_it_out_again(environment, web):
    plane = ControlPlane()
    progress = {"QWEN_PROGRESS_SECONDS": "0.1"}
    with WorkerProcess(environment(QWEN_SHUTDOWN_SECONDS="1", **progress, **addresses(web(plane)))) as worker:
        plane.put("running", LONG)
        plane.wait(lambda: plane.steps("running") > 1)
        started = time.monotonic()
        assert worker.terminate() == 0
        assert time.monotonic() - started > 0.9 and "running" not in plane.bodies
    assert any("code=cancelled" in one["message"] for one in worker.messages())


@pytest.fixture(scope="module")
def batching(tiny, tmp_path_factory):
    """(plane, its address): those of one worker process that holds jobs while it draws, and lets small ones share."""
    plane = ControlPlane()
    server = serve(plane)
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {"QWEN_BATCH": "4", "QWEN_CONCURRENCY": "2", "QWEN_PROGRESS_SECONDS": "0.1",
                "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}  # fmt: skip
    with WorkerProcess(environment_of(tiny, tmp_path_factory.mktemp("home"), **settings, **addresses(address))):
        yield plane, address
    server.shutdown()
    server.server_close()


def test_the_platform_s_python_client_gets_a_picture_sees_progress_and_cancels(batching, monkeypatch):
    import runpod

    plane, address = batching
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{address}/v2")
    endpoint = runpod.Endpoint("client", api_key="key")

    def output_of(fields):
        job = endpoint.run({"input": fields})
        plane.result(job.job_id)
        return job.output()

    assert picture_of(output_of(SMALL)["image"]).size == (256, 256)
    long = endpoint.run({"input": LONG})
    plane.wait(lambda: plane.steps(long.job_id) > 1)
    told = long._fetch_job()
    assert told["status"] == "IN_PROGRESS" and told["output"]["total"] == 100
    assert long.cancel()["status"] == "CANCELLED"
    assert output_of(SMALL)["success"]
    assert long.job_id not in plane.bodies
    with_error = endpoint.run({"input": {"prompt": ""}})
    plane.wait(lambda: with_error.job_id in plane.bodies)
    assert with_error.status() == "FAILED"


def test_a_worker_that_holds_two_jobs_opens_the_next_one_s_picture_while_it_draws(batching, web, scene):
    (plane, _), too_late = batching, []

    def picture(handler):
        too_late.append("first" in plane.bodies)
        respond(handler, file_of(scene))

    plane.put("first", {**SMALL, "num_inference_steps": 60})
    plane.put("second", {**SMALL, "num_inference_steps": 1, "image_url": web(picture)})
    first, second = plane.result("first"), plane.result("second")
    assert first["output"]["success"] and second["output"]["success"]
    results = [job_id for kind, job_id, _ in plane.log if kind == "result"]
    assert results.index("first") < results.index("second") and too_late == [False]


def test_small_jobs_share_a_call_and_a_stop_of_one_leaves_the_others(batching):
    plane, _ = batching
    long = {**SMALL, "num_inference_steps": 60}
    plane.put("health-before", {"task": "health"})
    before = plane.result("health-before")["output"]["counters"].get("batched", 0)
    plane.put("before", {**SMALL, "num_inference_steps": 61})
    plane.wait(lambda: "progress" in plane.kinds("before"))
    for number, name in enumerate("abcd"):
        plane.put(name, {**long, "prompt": f"a red circle {name}" * (number + 1), "seed": number})
    plane.put("large", {**SMALL, "width": 768, "height": 768})
    plane.wait(lambda: plane.steps("c") > 1)
    plane.stop("c")
    replies = {name: plane.result(name)["output"] for name in ("before", "a", "b", "d", "large")}
    shared = {name: reply["metadata"]["batch"] for name, reply in replies.items()}
    assert shared == {"before": 1, "a": 4, "b": 4, "d": 4, "large": 1} and "c" not in plane.bodies
    plane.put("a-again", {**long, "prompt": "a red circle a", "seed": 0})
    by_itself = plane.result("a-again")["output"]
    assert by_itself["metadata"]["batch"] == 1
    for one, other in zip(*(picture_of(r["image"]).tobytes() for r in (by_itself, replies["a"])), strict=True):
        assert abs(one - other) <= 1
    plane.put("health-after", {"task": "health"})
    assert plane.result("health-after")["output"]["counters"]["batched"] == before + 3


HANGS = """
import time, runpod_handler
from qwen_worker.pictures import fallback
draw = fallback.draw
def drawn(request, *more):
    print("drawing", request.prompt, flush=True)
    time.sleep(600 if request.prompt == "hang" else 3)
    return draw(request, *more)
fallback.draw = drawn
runpod_handler.main()
"""
GHOST = """
import runpod_handler
from runpod.serverless.modules.worker_state import JobsProgress
JobsProgress().add("ghost")  # as a stop before the task's first step leaves it
runpod_handler.main()
"""


def test_a_drawing_that_no_stop_ends_ends_the_worker_and_a_long_one_does_not(environment, web):
    plane = ControlPlane()
    env = environment(QWEN_FALLBACK="force", QWEN_STUCK_SECONDS="1", **addresses(web(plane)))
    with WorkerProcess(env, ("-c", HANGS)) as worker:
        plane.put("long", SMALL)
        assert plane.result("long")["output"]["success"]
        plane.put("stuck", {**SMALL, "prompt": "hang"})
        plane.wait(lambda: "drawing hang\n" in worker.lines)
        plane.stop("stuck")
        assert worker.end() == 1
    assert "stuck" not in plane.bodies
    assert any(one["requestId"] == "stuck" and "has held its slot" in one["message"] for one in worker.messages()), (
        worker.lines
    )


def test_a_slot_that_no_handler_answers_ends_the_worker(environment, web):
    env = environment(QWEN_FALLBACK="force", QWEN_STUCK_SECONDS="1", **addresses(web(ControlPlane())))
    with WorkerProcess(env, ("-c", GHOST)) as worker:
        assert worker.end() == 1
    assert any(one["requestId"] == "ghost" for one in worker.messages())
