"""A stop by the platform's API ends a drawing within a step, by the worker's own count of them."""

import requests

from ..support.control_plane import ControlPlane, WorkerProcess, addresses

LONG = {"prompt": "a red circle", "num_inference_steps": 100, "width": 1024, "height": 1024}
COUNTS = """
import runpod_handler
from qwen_worker.jobs.job import Job
end_step = Job.end_step
def counted(job, step, steps):
    print("step", step, flush=True)
    end_step(job, step, steps)
Job.end_step = counted
runpod_handler.main()
"""


def test_a_stop_ends_the_drawing_within_a_step(environment, web):
    plane = ControlPlane()
    address = web(plane)
    with WorkerProcess(environment(**addresses(address)), ("-c", COUNTS)) as worker:

        def steps():
            return sum(line.startswith("step ") for line in list(worker.lines))

        job_id = requests.post(f"{address}/v2/client/run", json={"input": LONG}, timeout=60).json()["id"]
        plane.wait(lambda: steps() > 2)
        assert requests.post(f"{address}/v2/client/cancel/{job_id}", timeout=60).json()["status"] == "CANCELLED"
        plane.wait(lambda: job_id not in plane.plane.stops)  # the SDK asks for stops about once a second
        before = steps()
        plane.put("next", {"task": "health"})  # its worker is free only when the drawing has ended
        plane.result("next")
        # The step that ran when the worker fetched the stop, and one that may have begun before it was acted on.
        assert before <= steps() <= before + 2
        assert any("code=cancelled" in one["message"] for one in worker.messages())
