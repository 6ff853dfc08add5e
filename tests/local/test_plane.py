"""What becomes of a job at the plane, by a clock that the tests move."""

import asyncio

import pytest

from qwen_local.job import JobRequest, Status
from qwen_local.plane import Plane, UnknownJob

FIELDS = JobRequest({"prompt": "a"})


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plane(clock):
    return Plane(clock=clock)


def take(plane, worker="worker-1", most=1):
    return list(asyncio.run(plane.take(worker, most, 0.01)))


def drawn(plane, job, **body):
    take(plane)
    plane.hear_result(job, "worker-1", body or {"output": {"image": "x"}})


@pytest.mark.parametrize(("sync", "seconds"), [(False, 30 * 60), (True, 60)])
def test_a_result_is_kept_as_long_as_the_platform_keeps_it(plane, clock, sync, seconds):
    job = plane.submit(FIELDS, sync)
    clock.now += 3600  # in the queue, where it does not grow old
    drawn(plane, job)
    clock.now += seconds - 1
    assert plane.find(job.id).state()["output"] == {"image": "x"}
    clock.now += 2
    with pytest.raises(UnknownJob):
        plane.find(job.id)


def test_a_job_is_deleted_at_its_ttl_even_while_it_runs_and_its_worker_stops_it(plane, clock):
    running, waiting = (plane.submit(JobRequest({"prompt": "a"}, ttl_seconds=10)) for _ in range(2))
    assert take(plane) == [running]
    clock.now += 11
    for job in (running, waiting):
        with pytest.raises(UnknownJob):
            plane.find(job.id)
    assert asyncio.run(plane.take_stops("worker-1", 0.01)) == [running.id]
    assert take(plane) == []


def test_the_execution_timeout_runs_from_the_hand_out(plane, clock):
    job = plane.submit(JobRequest({"prompt": "a"}, execution_seconds=5))
    clock.now += 100
    plane.sweep()
    assert job.status is Status.IN_QUEUE
    take(plane)
    plane.hear_progress(job, {"output": {"step": 3}})
    clock.now += 5
    plane.sweep()
    assert job.state() == {
        "id": job.id, "status": "TIMED_OUT", "delayTime": 100_000, "executionTime": 5000, "workerId": "worker-1",
    }  # fmt: skip
    assert asyncio.run(plane.take_stops("worker-2", 0.01)) == []
    assert asyncio.run(plane.take_stops("worker-1", 0.01)) == [job.id]
    plane.hear_result(job, "worker-1", {"output": {"image": "late"}})
    assert job.status is Status.TIMED_OUT and "output" not in job.state()


def test_a_job_whose_worker_dies_goes_first_to_the_next_one_and_fails_when_that_dies_too(plane):
    job, later = plane.submit(FIELDS), plane.submit(FIELDS)
    assert take(plane) == [job]
    plane.hear_progress(job, {"output": {"step": 3}})
    plane.lose("worker-1")
    assert job.state() == {"id": job.id, "status": "IN_QUEUE", "retries": 1}
    assert take(plane, "worker-2", most=5) == [job, later]
    plane.lose("worker-2")
    assert job.status is Status.FAILED and job.error.startswith("job timed out after 1 retries: its worker ended")
    assert later.status is Status.IN_QUEUE
    assert plane.health()["jobs"] == {"completed": 0, "failed": 1, "inProgress": 0, "inQueue": 1, "retried": 2}


def test_a_job_that_was_cancelled_stays_so_whatever_its_worker_says(plane):
    job = plane.submit(FIELDS)
    take(plane)
    plane.cancel(job)
    plane.hear_progress(job, {"output": {"step": 3}})
    plane.hear_chunk(job, {"output": {"step": 3}})
    plane.hear_result(job, "worker-1", {"output": {"image": "x"}})
    assert job.state()["status"] == "CANCELLED" and "output" not in job.state() and job.pop_chunks() == []
    plane.lose("worker-1")
    assert job.status is Status.CANCELLED


def test_progress_that_comes_after_the_result_changes_nothing(plane):
    job = plane.submit(FIELDS)
    drawn(plane, job)
    plane.hear_progress(job, {"output": {"step": 3}})
    plane.cancel(job)
    assert job.state()["status"] == "COMPLETED" and job.state()["output"] == {"image": "x"}


def test_only_what_failed_is_tried_again_under_its_own_id(plane):
    job = plane.submit(FIELDS)
    drawn(plane, job, error="invalid_input: ...", output={"success": False})
    assert job.state()["status"] == "FAILED" and job.state()["output"] == {"success": False}
    assert plane.retry(job) and job.state() == {"id": job.id, "status": "IN_QUEUE", "retries": 1}
    drawn(plane, job)
    assert job.status is Status.COMPLETED and not plane.retry(job)


def test_purging_takes_waiting_jobs_and_leaves_those_that_run(plane):
    running, *waiting = (plane.submit(FIELDS) for _ in range(3))
    take(plane)
    assert plane.purge() == 2 and plane.purge() == 0
    assert [job.status for job in (running, *waiting)] == [Status.IN_PROGRESS, Status.CANCELLED, Status.CANCELLED]
    assert take(plane) == []


def test_a_worker_that_asks_to_be_replaced_gets_no_further_job(plane):
    job, later = plane.submit(FIELDS), plane.submit(FIELDS)
    drawn(plane, job, output={"image": "x"}, stopPod=True)
    assert take(plane) == [] and later.status is Status.IN_QUEUE
    assert take(plane, "worker-2") == [later]


def test_a_worker_that_hangs_up_while_it_waits_is_handed_nothing(plane):
    async def hang_up():
        gone = asyncio.get_running_loop().create_future()
        taking = asyncio.create_task(plane.take("worker-1", 1, 60, gone))
        await asyncio.sleep(0)
        gone.set_result(None)
        job = plane.submit(FIELDS)
        return await taking, job

    taken, job = asyncio.run(hang_up())
    assert taken == [] and job.status is Status.IN_QUEUE


def test_the_health_counts_workers_by_what_they_do(plane):
    for name in ("worker-1", "worker-2", "worker-3"):
        plane.expect(name)
    assert plane.health()["workers"] == {
        "idle": 0, "initializing": 3, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0,
    }  # fmt: skip
    plane.submit(FIELDS)
    take(plane, "worker-1")
    take(plane, "worker-2")
    plane.lose("worker-3")
    assert plane.health()["workers"] == {
        "idle": 1, "initializing": 0, "ready": 2, "running": 1, "throttled": 0, "unhealthy": 0,
    }  # fmt: skip


def test_a_late_result_of_the_first_start_takes_the_job_that_was_queued_again_from_the_queue(plane, clock):
    job = plane.submit(JobRequest({"prompt": "a"}, execution_seconds=5))
    take(plane)
    clock.now += 6
    plane.sweep()
    assert plane.retry(job)
    plane.hear_result(job, "worker-1", {"output": {"image": "x"}})
    assert job.status is Status.COMPLETED and take(plane, "worker-2") == []


def test_a_stop_that_nobody_has_heard_is_not_for_the_next_start(plane, clock):
    job = plane.submit(JobRequest({"prompt": "a"}, execution_seconds=5))
    take(plane)
    clock.now += 6
    plane.sweep()
    assert plane.retry(job) and take(plane) == [job]
    assert asyncio.run(plane.take_stops("worker-1", 0.01)) == []


def test_above_a_gigabyte_of_results_the_oldest_are_forgotten(plane, clock):
    jobs = [plane.submit(FIELDS) for _ in range(3)]
    for job in jobs:
        take(plane)
        clock.now += 1
        plane.hear_result(job, "worker-1", {"output": {"image": "x"}}, 400_000_000)
    with pytest.raises(UnknownJob):
        plane.find(jobs[0].id)
    assert [plane.find(job.id).status for job in jobs[1:]] == [Status.COMPLETED] * 2
