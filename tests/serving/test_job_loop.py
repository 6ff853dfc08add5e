"""The worker process in the SDK's own loop, against a control plane on loopback: jobs, stops, SIGTERM."""

import threading
import time

from ..conftest import file_of, picture_of, respond
from ..support.control_plane import PATIENCE, ControlPlane, WorkerProcess, addresses

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2}
LONG = {**SMALL, "num_inference_steps": 100, "width": 1024, "height": 1024}


def test_jobs_are_taken_one_is_stopped_and_sigterm_ends_an_idle_worker_at_once(environment, web):
    plane = ControlPlane(hold=6)
    with WorkerProcess(environment(**addresses(web(plane)))) as worker:
        plane.put("good-1", SMALL)
        first = plane.result("good-1")
        assert first["output"]["metadata"]["backend"] == "qwen-image"
        plane.put("long", LONG)
        plane.wait(lambda: "long" in plane.taken)
        time.sleep(1)
        plane.stops.put("long")
        plane.put("good-2", {**SMALL, "seed": first["output"]["metadata"]["seed"]})
        second = plane.result("good-2")
        assert second["output"]["image"] == first["output"]["image"]
        assert "long" not in plane.bodies
        time.sleep(1.5)  # the poll for the next job is held for six seconds
        code, seconds = worker.terminate()
        assert code == 0 and seconds < 4
    logged = worker.messages()
    assert any(one["requestId"] == "good-2" and "code=ok" in one["message"] for one in logged)


def test_a_stop_that_comes_before_the_job_is_begun_is_heard(environment, web):
    plane, over = ControlPlane(), threading.Event()
    silent = web(lambda handler: over.wait(30))
    private = {"QWEN_FALLBACK": "force", "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
    with WorkerProcess(environment(**private, **addresses(web(plane)))) as worker:
        plane.put("first", SMALL)
        plane.result("first")
        plane.stops.put("early")
        time.sleep(0.3)  # heard, and for no job that there is
        plane.put("early", {"prompt": "a", "image_url": silent})
        plane.wait(lambda: "early" in plane.taken)
        plane.put("next", SMALL)
        taken = time.monotonic()
        plane.result("next")
        assert time.monotonic() - taken < 6 and "early" not in plane.bodies
        over.set()
        assert worker.terminate()[0] == 0


def test_sigterm_lets_the_running_job_finish(environment, web):
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_SHUTDOWN_SECONDS="90", **addresses(web(plane)))) as worker:
        plane.put("warm", SMALL)
        plane.result("warm")
        plane.put("running", {**SMALL, "num_inference_steps": 40})
        plane.wait(lambda: "progress" in plane.kinds("running"))
        plane.put("waiting", SMALL)
        assert worker.terminate()[0] == 0
        assert plane.result("running")["output"]["success"]
        assert "waiting" not in plane.taken


def test_past_the_grace_sigterm_ends_the_job_and_the_platform_may_hand_it_out_again(environment, web):
    plane = ControlPlane()
    with WorkerProcess(environment(QWEN_SHUTDOWN_SECONDS="1", **addresses(web(plane)))) as worker:
        plane.put("warm", SMALL)
        plane.result("warm")
        plane.put("running", LONG)
        plane.wait(lambda: "running" in plane.taken)
        time.sleep(1)
        code, seconds = worker.terminate()
        assert code == 0 and 0.9 < seconds < 10
        assert "running" not in plane.bodies
    assert any("code=cancelled" in one["message"] for one in worker.messages())


def test_the_platform_s_python_client_gets_a_picture_sees_progress_and_cancels(environment, web, monkeypatch):
    import runpod

    plane = ControlPlane()
    address = web(plane)
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{address}/v2")
    with WorkerProcess(environment(QWEN_PROGRESS_SECONDS="0.1", **addresses(address))):
        endpoint = runpod.Endpoint("client", api_key="key")
        output = endpoint.run({"input": SMALL}).output(timeout=PATIENCE)
        assert picture_of(output["image"]).size == (256, 256)
        long = endpoint.run({"input": LONG})
        plane.wait(lambda: plane.state(long.job_id).get("output", {}).get("step", 0) > 1)
        told = long._fetch_job()
        assert told["status"] == "IN_PROGRESS" and told["output"]["total"] == 100
        assert long.cancel()["status"] == "CANCELLED"
        assert endpoint.run({"input": SMALL}).output(timeout=PATIENCE)["success"]
        assert long.job_id not in plane.bodies
        with_error = endpoint.run({"input": {"prompt": ""}})
        plane.wait(lambda: with_error.job_id in plane.bodies)
        assert with_error.status() == "FAILED"


def test_a_worker_that_holds_two_jobs_opens_the_next_one_s_picture_while_it_draws(environment, web, scene):
    plane, too_late = ControlPlane(), []

    def picture(handler):
        too_late.append("first" in plane.bodies)
        respond(handler, file_of(scene))

    private = {"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "QWEN_CONCURRENCY": "2"}
    edit = {**SMALL, "num_inference_steps": 1, "image_url": web(picture)}
    with WorkerProcess(environment(**private, **addresses(web(plane)))) as worker:
        plane.put("first", {**SMALL, "num_inference_steps": 60})
        plane.put("second", edit)
        first, second = plane.result("first"), plane.result("second")
        assert first["output"]["success"] and second["output"]["success"]
        assert [job_id for kind, job_id, _ in plane.log if kind == "result"] == ["first", "second"]
        assert too_late == [False]
        assert worker.terminate()[0] == 0


def test_small_jobs_share_a_call_and_a_stop_of_one_leaves_the_others(environment, web):
    plane = ControlPlane()
    batching = {"QWEN_BATCH": "4", "QWEN_CONCURRENCY": "2", "QWEN_PROGRESS_SECONDS": "0.1"}
    long = {**SMALL, "num_inference_steps": 60}
    with WorkerProcess(environment(**batching, **addresses(web(plane)))) as worker:
        plane.put("before", {**SMALL, "num_inference_steps": 61})
        plane.wait(lambda: "progress" in plane.kinds("before"))
        for number, name in enumerate("abcd"):
            plane.put(name, {**long, "prompt": f"a red circle {name}" * (number + 1), "seed": number})
        plane.put("large", {**SMALL, "width": 768, "height": 768})
        plane.wait(lambda: plane.state("c").get("output", {}).get("step", 0) > 1)
        plane.stops.put("c")
        replies = {name: plane.result(name)["output"] for name in ("before", "a", "b", "d", "large")}
        shared = {name: reply["metadata"]["batch"] for name, reply in replies.items()}
        assert shared == {"before": 1, "a": 4, "b": 4, "d": 4, "large": 1} and "c" not in plane.bodies
        plane.put("a-again", {**long, "prompt": "a red circle a", "seed": 0})
        by_itself = plane.result("a-again")["output"]
        assert by_itself["metadata"]["batch"] == 1
        for one, other in zip(*(picture_of(r["image"]).tobytes() for r in (by_itself, replies["a"])), strict=True):
            assert abs(one - other) <= 1
        plane.put("health", {"task": "health"})
        assert plane.result("health")["output"]["counters"]["batched"] == 3
        assert worker.terminate()[0] == 0


HANGS = """
import time, runpod_handler
from qwen_worker.pictures import fallback
draw = fallback.draw
def drawn(request, *more):
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
        plane.wait(lambda: "stuck" in plane.taken)
        time.sleep(0.5)
        plane.stops.put("stuck")
        assert worker.process.wait(30) == 1
    assert "stuck" not in plane.bodies
    assert any(one["requestId"] == "stuck" and "has held its slot" in one["message"] for one in worker.messages()), (
        worker.lines
    )


def test_a_slot_that_no_handler_answers_ends_the_worker(environment, web):
    env = environment(QWEN_FALLBACK="force", QWEN_STUCK_SECONDS="1", **addresses(web(ControlPlane())))
    with WorkerProcess(env, ("-c", GHOST)) as worker:
        assert worker.process.wait(30) == 1
    assert any(one["requestId"] == "ghost" for one in worker.messages())
