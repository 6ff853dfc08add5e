"""What RunPod does behind its API: endpoints and their versions, workers that a tick moves on, jobs that they take."""

import itertools
from concurrent.futures import Future
from dataclasses import dataclass

from .billing import Bills
from .builds import Build

CREATED = "2026-06-01T12:00:00Z"
ROUTES = {
    "run": "run", "runSync": "runsync", "status": "status/{job_id}", "stream": "stream/{job_id}",
    "cancel": "cancel/{job_id}", "retry": "retry/{job_id}", "purgeQueue": "purge-queue", "health": "health",
}  # fmt: skip

# Name, pool, GB, dollars an hour, stock.
GPUS = [
    ("NVIDIA RTX A4000", "AMPERE_16", 16, 0.58, "HIGH"),
    ("NVIDIA L4", "AMPERE_24", 24, 0.68, "NONE"),
    ("NVIDIA GeForce RTX 4090", "ADA_24", 24, 1.12, "HIGH"),
    ("NVIDIA A40", "AMPERE_48", 48, 1.22, "HIGH"),
    ("NVIDIA RTX A6000", "AMPERE_48", 48, 1.22, "LOW"),
    ("NVIDIA A100 80GB PCIe", "AMPERE_80", 80, 2.74, "MEDIUM"),
    ("NVIDIA H200", "HOPPER_141", 141, 5.58, "HIGH"),
]


@dataclass
class Worker:
    id: str
    version: int
    image: str
    status: str = "INITIALIZING"
    starts: int = 1
    ticks: int = 0
    card: str = "NVIDIA GeForce RTX 4090"


class Platform:
    """`builds` says what each image's workers do; `ignores` are fields that an update does not keep."""

    def __init__(self):
        self.endpoints, self.versions, self.workers, self.jobs = {}, {}, {}, {}
        self.builds: dict[str, Build] = {}
        self.gpus = list(GPUS)
        self.bills = Bills()
        self.absent: set[tuple[str, str]] = set()  # (data centre, card)
        self.numbers = itertools.count(1)
        self.ignores: set[str] = set()
        self.lag = 0  # looks at the workers until the platform has counted an update
        self.uncounted_looks = 0  # looks that are left of it
        self.old_ticks = 1  # looks for which a worker of an old version lives on
        self.throttled: set[str] = set()  # pools without a free card
        self.enforces_limits = True  # whether jobs are ended that take longer than they may
        self.url = ""

    def add(self, image="docker.io/you/qwen-image:v0", workers=1, **fields):
        """An endpoint that is there already, with its workers ready."""
        body = {
            "name": "qwen-image", "type": "QUEUE", "image": image, "disk": 50, "args": "", "ports": [],
            "env": {"QWEN_FALLBACK": "allow", "HF_TOKEN": "hf_secret_of_the_endpoint"}, "registry": None,
            "gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA L4"], "count": 1, "minCudaVersion": "12.4"},
            "workers": {"min": 1, "max": 5, "idleTimeout": 60}, "scaling": {"type": "QUEUE_DELAY", "queueDelay": 9},
            "dataCenterIds": ["US-KS-2"], "networkVolumes": ["vol_abc"], "timeout": 600000, "flashboot": "OFF",
        } | fields  # fmt: skip
        endpoint = self.create(body)
        for _ in range(workers):
            self.start(endpoint["id"], "IDLE")
        return endpoint

    def create(self, body):
        endpoint_id = f"ep{next(self.numbers)}"
        gpu = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None} | body["gpu"]
        urls = {name: f"{self.url}/jobs/{endpoint_id}/{path}" for name, path in ROUTES.items()}
        rest = {"args": "", "ports": [], "env": {}, "registry": None, "dataCenterIds": [], "networkVolumes": []}
        own = {"id": endpoint_id, "requestUrls": urls, "createdAt": CREATED, "timeout": 300000, "flashboot": "OFF"}
        workers = {"min": 0, "max": 3, "idleTimeout": 10} | body.get("workers", {})
        if body["scaling"]["type"] == "REQUEST_COUNT":
            del workers["idleTimeout"]
        self.endpoints[endpoint_id] = rest | own | body | {"gpu": gpu, "workers": workers}
        self.versions[endpoint_id], self.workers[endpoint_id] = 1, []
        return self.endpoints[endpoint_id]

    def update(self, endpoint_id, body):
        endpoint = self.endpoints[endpoint_id]
        is_new = any(name in body and body[name] != endpoint.get(name) for name in ("image", "env", "args", "disk"))
        for name, value in body.items():
            if name in self.ignores:
                continue
            if name == "gpu":
                if "pools" in value:
                    endpoint["gpu"].pop("excludedTypes", None)
                value = value | ({"minCudaVersion": None} if value.get("minCudaVersion") == "" else {})
            endpoint[name] = {**endpoint[name], **value} if name in ("gpu", "workers") else value
        self.versions[endpoint_id] += is_new
        self.uncounted_looks = self.lag if is_new else 0
        return endpoint

    def delete(self, endpoint_id):
        for kept in (self.endpoints, self.versions, self.workers):
            del kept[endpoint_id]
        self.jobs = {name: job for name, job in self.jobs.items() if job["endpoint"] != endpoint_id}

    def add_job(self, endpoint_id, fields, policy=None):
        job_id = f"job{next(self.numbers)}"
        limit = (policy or {}).get("executionTimeout") or self.endpoints[endpoint_id]["timeout"]
        self.jobs[job_id] = {"id": job_id, "status": "IN_QUEUE", "input": fields, "endpoint": endpoint_id}
        self.jobs[job_id]["limit"] = limit  # milliseconds; 0 for none
        return {"id": job_id, "status": "IN_QUEUE"}

    def count_jobs(self, endpoint_id):
        states = [job["status"] for job in self.jobs.values() if job["endpoint"] == endpoint_id]
        names = {"inQueue": "IN_QUEUE", "inProgress": "IN_PROGRESS", "completed": "COMPLETED", "failed": "FAILED"}
        return {name: states.count(state) for name, state in names.items()}

    def start(self, endpoint_id, status="INITIALIZING"):
        image = self.endpoints[endpoint_id]["image"]
        worker = Worker(f"w{next(self.numbers)}", self.versions[endpoint_id], image, status)
        free = [pool for pool in self.endpoints[endpoint_id]["gpu"]["pools"] if pool not in self.throttled]
        worker.card = next((name for name, pool, *_ in self.gpus if pool in free[:1]), worker.card)
        self.workers[endpoint_id].append(worker)
        return worker

    def has_card(self, endpoint_id):
        return not self.throttled.issuperset(self.endpoints[endpoint_id]["gpu"]["pools"])

    def tick(self, endpoint_id):
        version, kept = self.versions[endpoint_id], []
        for worker in self.workers[endpoint_id]:
            build = self.builds.get(worker.image, Build())
            worker.ticks += 1
            if not self.endpoints[endpoint_id]["workers"]["max"]:
                continue
            if worker.version < version:
                worker.starts += 1
                if worker.starts > self.old_ticks + 1:
                    continue
            elif build.crashes or build.unpullable:
                worker.starts += 1
            else:
                early = build.early_states[worker.ticks - 1 : worker.ticks]
                worker.status = early[0] if early else build.state if self.has_card(endpoint_id) else "THROTTLED"
            if not (build.vanishes and worker.version == version):
                kept.append(worker)
        self.workers[endpoint_id] = kept

    def fresh(self, endpoint_id):
        return [worker for worker in self.workers[endpoint_id] if worker.version == self.versions[endpoint_id]]

    def run_jobs(self, endpoint_id):
        """Workers of any version take jobs; without one, or with only old ones, a new one is started."""
        uncounted, endpoint = self.uncounted_looks, self.endpoints[endpoint_id]
        if not uncounted and not self.fresh(endpoint_id) and endpoint["workers"]["max"]:
            self.start(endpoint_id)
        ready = [worker for worker in self.workers[endpoint_id] if worker.status == "IDLE"]
        for job in self.jobs.values():
            if job["endpoint"] != endpoint_id:
                continue
            if job["status"] == "IN_QUEUE" and ready:
                worker = min(ready, key=lambda worker: worker.version)
                build = self.builds.get(worker.image, Build())
                job |= {"status": "IN_PROGRESS", "workerId": worker.id}
                job["reply"] = build.answer(job["input"], endpoint["env"])
                job["messages"], job["seconds"] = list(build.progress), build.seconds.get(job["input"]["task"], 4)
            if job["status"] == "IN_PROGRESS" and job["messages"]:
                job["output"] = job["messages"].pop(0)
            elif job["status"] == "IN_PROGRESS":
                self.finish(job)

    def finish(self, job):
        """Once the reply is there; where a future brings it, that may be at a later look."""
        reply = job["reply"]
        if isinstance(reply, Future):
            if not reply.done():
                return
            reply = reply.result()
        took = 1000 * job["seconds"]
        if self.enforces_limits and 0 < job["limit"] < took:
            job |= {"status": "TIMED_OUT", "executionTime": job["limit"], "delayTime": 100}
            return
        job |= {"status": "COMPLETED", "output": reply, "executionTime": took, "delayTime": 100}
        if "error" in reply:
            job |= {"status": "FAILED", "error": reply["error"]}

    def list_workers(self, endpoint_id):
        if self.uncounted_looks:
            self.uncounted_looks -= 1
        else:
            self.tick(endpoint_id)
        version = self.versions[endpoint_id] - (self.uncounted_looks > 0)
        workers = [
            {"id": worker.id, "status": worker.status, "isStale": worker.version < version, "version": worker.version,
             "gpuCount": 1, "image": worker.image, "uptimeSeconds": 5, "gpuTypeId": worker.card,
             "dataCenterId": "US-KS-2"}
            for worker in self.workers[endpoint_id]
        ]  # fmt: skip
        states = ("running", "idle", "initializing", "throttled", "unhealthy")
        counts = {state: sum(worker["status"] == state.upper() for worker in workers) for state in states}
        return {"workers": workers, "summary": counts | {"total": len(workers)}, "endpointVersion": version}

    def list_releases(self, endpoint_id):
        latest, total = len(self.fresh(endpoint_id)), len(self.workers[endpoint_id])
        share = {"inProgress": latest < total, "workersOnLatest": latest, "workersTotal": total}
        share["percentOnLatest"] = 100 * latest // total if total else 0
        return {"endpointVersion": self.versions[endpoint_id], "rollout": share, "releases": []}

    def log(self, worker_id, source):
        """(source, line) of a worker's log, of both sources where none is asked for; None for no such worker."""
        worker = next((one for workers in self.workers.values() for one in workers if one.id == worker_id), None)
        if worker is None:
            return None
        build = self.builds.get(worker.image, Build())
        system = ["create container"] + ["start container for x: begin"] * (worker.starts if build.crashes else 1)
        if build.start_log:
            system = build.start_log[: worker.ticks]
        if build.unpullable:
            system = ["error pulling image: manifest for x not found: manifest unknown"] * worker.starts
        lines = {"system": system, "container": list(build.log)}
        return [(name, line) for name in ((source,) if source else lines) for line in lines[name]]
