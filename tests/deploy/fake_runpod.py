"""RunPod on loopback: REST API v2, the job queue of its endpoints, and workers that come up, crash or wait for a card.

Requests are held against the schemas of RunPod's OpenAPI document, and so are the answers. What an image's workers do
is a `Build`. Time passes by looks: each GET of the workers is a tick.
"""

import base64
import io
import itertools
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jsonschema import Draft202012Validator
from PIL import Image

SCHEMAS = json.loads((Path(__file__).parent / "runpod_v2.json").read_text())
KEY = "rpa_TESTKEY0123456789abcdef"
CREATED = "2026-06-01T12:00:00Z"


def validator(name):
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]})


def violations(name, value):
    """As the API words them: `$.disk: must be ...`."""
    found = []
    for error in validator(name).iter_errors(value):
        path = "".join(f".{part}" if isinstance(part, str) else f"[{part}]" for part in error.absolute_path)
        extra = re.search(r"\('([^']+)' (?:was|were) unexpected\)", error.message)
        rule = f"additional properties '{extra.group(1)}' not allowed" if extra else error.message
        found.append(f"${path}: {rule}")
    return found


def a_picture(width=64, height=64):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def draws(version):
    """A worker that serves: what a job's input and its environment make it answer."""

    def answer(fields, env):
        if fields["task"] == "health":
            state = {"mode": env.get("QWEN_FALLBACK", "allow"), "reasons": {}}
            return {"status": "healthy", "worker_version": version, "fallback": state}
        facts = {"backend": "qwen-image", "worker_version": version, "width": 64, "height": 64, "dimensions": "64x64",
                 "steps": 50, "seed": 7, "seeds": [7], "processing_time": 3.0, "timings": {"load": 1.0}}  # fmt: skip
        return {"success": True, "message": "drawn", "image": a_picture(), "metadata": facts}

    return answer


def stands_in(version):
    """A worker that answers with gradients, whatever its environment forbids."""

    def answer(fields, env):
        reply = draws(version)(fields, env)
        if "metadata" in reply:
            reply["metadata"] |= {"backend": "pil-fallback", "fallback_reason": "no weights"}
        return reply

    return answer


@dataclass
class Build:
    """What an image's workers do: `state` comes after one tick; `crashes` and `unpullable` write their system
    log, one that `vanishes` is gone at the next look."""

    answer: Callable = draws("v1")
    state: str = "IDLE"
    crashes: bool = False
    unpullable: bool = False
    vanishes: bool = False
    log: tuple = ("Worker ready.",)


@dataclass
class Worker:
    id: str
    version: int
    image: str
    status: str = "INITIALIZING"
    starts: int = 1


@dataclass
class Fault:
    """One answer that goes wrong: `status` with `headers`, or the connection `drop`ped before or after the work."""

    method: str
    path: str
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: object = None
    drop: str = ""  # "before" or "after"


GPUS = [
    ("NVIDIA RTX A4000", "AMPERE_16", 16, 0.58, "HIGH"),
    ("NVIDIA L4", "AMPERE_24", 24, 0.68, "NONE"),
    ("NVIDIA GeForce RTX 4090", "ADA_24", 24, 1.12, "HIGH"),
    ("NVIDIA A40", "AMPERE_48", 48, 1.22, "HIGH"),
    ("NVIDIA RTX A6000", "AMPERE_48", 48, 1.22, "LOW"),
    ("NVIDIA A100 80GB PCIe", "AMPERE_80", 80, 2.74, "MEDIUM"),
    ("NVIDIA H200", "HOPPER_141", 141, 5.58, "HIGH"),
]


class FakeRunPod:
    def __init__(self):
        self.endpoints, self.versions, self.workers, self.jobs, self.releases = {}, {}, {}, {}, {}
        self.builds: dict[str, Build] = {}
        self.requests: list[tuple[str, str, object]] = []
        self.faults: list[Fault] = []
        self.wrong: list[str] = []  # answers of this fake that the document would not allow
        self.numbers = itertools.count(1)
        self.lock = threading.RLock()
        self.on_request = lambda method, path: None  # for a test that interrupts at a certain request
        self.ignores: set[str] = set()  # fields that an update does not keep
        self.lines_end = threading.Event()  # a log stream stays open until it is set
        self.lines_end.set()
        self.lag = 0  # looks at the workers until the platform tells that it has counted an update
        self.hidden = 0
        self.old_ticks = 1  # looks for which a worker of an old version lives on
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    @property
    def writes(self):
        """Every request that changes something or costs something."""
        return [one for one in self.requests if one[0] != "GET"]

    def writes_to(self, path):
        return [one for one in self.writes if one[1].startswith(path)]

    def add(self, image="docker.io/you/qwen-image:v0", workers=1, **fields):
        """An endpoint that is there already, with its workers ready."""
        body = {
            "name": "qwen-image", "type": "QUEUE", "image": image, "disk": 50, "args": "", "ports": [],
            "env": {"QWEN_FALLBACK": "allow", "HF_TOKEN": "hf_secret_of_the_endpoint"}, "registry": None,
            "gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA L4"], "count": 1, "minCudaVersion": "12.4"},
            "workers": {"min": 1, "max": 5, "idleTimeout": 60}, "scaling": {"type": "QUEUE_DELAY", "queueDelay": 9},
            "dataCenterIds": ["US-KS-2"], "networkVolumes": ["vol_abc"], "timeout": 600000, "flashboot": "OFF",
        } | fields  # fmt: skip
        made = self.create(body)
        for _ in range(workers):
            self.start(made["id"], "IDLE")
        return made

    # What the platform does.

    def create(self, body):
        endpoint_id = f"ep{next(self.numbers)}"
        gpu = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None} | body["gpu"]
        urls = {
            name: f"{self.url}/jobs/{endpoint_id}/{path}"
            for name, path in {
                "run": "run", "runSync": "runsync", "status": "status/{job_id}", "stream": "stream/{job_id}",
                "cancel": "cancel/{job_id}", "retry": "retry/{job_id}", "purgeQueue": "purge-queue", "health": "health",
            }.items()
        }  # fmt: skip
        rest = {"args": "", "ports": [], "env": {}, "registry": None, "dataCenterIds": [], "networkVolumes": []}
        held = {"id": endpoint_id, "requestUrls": urls, "createdAt": CREATED, "timeout": 300000, "flashboot": "OFF"}
        workers = {"min": 0, "max": 3, "idleTimeout": 10} | body.get("workers", {})
        self.endpoints[endpoint_id] = rest | held | body | {"gpu": gpu, "workers": workers}
        self.versions[endpoint_id], self.workers[endpoint_id] = 1, []
        return self.endpoints[endpoint_id]

    def update(self, endpoint_id, body):
        held = self.endpoints[endpoint_id]
        new_version = any(name in body and body[name] != held.get(name) for name in ("image", "env", "args", "disk"))
        for name, value in body.items():
            if name in self.ignores:
                continue
            if name == "gpu":
                if "pools" in value:
                    held["gpu"].pop("excludedTypes", None)
                value = value | ({"minCudaVersion": None} if value.get("minCudaVersion") == "" else {})
            held[name] = {**held[name], **value} if name in ("gpu", "workers") else value
        self.versions[endpoint_id] += new_version
        self.hidden = self.lag if new_version else 0
        return held

    def start(self, endpoint_id, status="INITIALIZING"):
        image = self.endpoints[endpoint_id]["image"]
        worker = Worker(f"w{next(self.numbers)}", self.versions[endpoint_id], image, status)
        self.workers[endpoint_id].append(worker)
        return worker

    def tick(self, endpoint_id):
        version, kept = self.versions[endpoint_id], []
        for worker in self.workers[endpoint_id]:
            build = self.builds.get(worker.image, Build())
            if worker.version < version:
                worker.starts += 1
                if worker.starts > self.old_ticks + 1:
                    continue
            elif build.crashes or build.unpullable:
                worker.starts += 1
            else:
                worker.status = build.state
            if not (build.vanishes and worker.version == version):
                kept.append(worker)
        self.workers[endpoint_id] = kept

    def fresh(self, endpoint_id):
        return [one for one in self.workers[endpoint_id] if one.version == self.versions[endpoint_id]]

    def run_jobs(self, endpoint_id):
        """Workers of any version take jobs; without one, or with only old ones, a new one is started."""
        if not self.hidden and not self.fresh(endpoint_id) and self.endpoints[endpoint_id]["workers"]["max"]:
            self.start(endpoint_id)
        ready = [one for one in self.workers[endpoint_id] if one.status == "IDLE"]
        for job in self.jobs.values():
            if job["status"] == "IN_QUEUE" and job["endpoint"] == endpoint_id and ready:
                worker = min(ready, key=lambda one: one.version)
                build = self.builds.get(worker.image, Build())
                reply = build.answer(job["input"], self.endpoints[endpoint_id]["env"])
                facts = {"workerId": worker.id, "executionTime": 4000, "delayTime": 100}
                failed = {"status": "FAILED", "error": reply["error"]} if "error" in reply else {}
                job |= {"status": "COMPLETED", "output": reply} | failed | facts

    # What it answers: (status, body).

    def respond(self, method, path, query, body):
        if path.startswith("/jobs/"):
            return self.job(method, *path.split("/")[2:], body=body)
        if path == "/v2/catalog/gpus":
            return 200, {"gpus": [self.gpu(*one) for one in GPUS]}
        parts = path.split("/")[3:]
        if not parts:
            if method == "GET":
                return 200, {"endpoints": list(self.endpoints.values())}
            return self.refusal("CreateEndpointRequest", body) or (201, self.create(body))
        if parts[0] not in self.endpoints:
            return 404, problem("Not Found", 404, "endpoint not found")
        if len(parts) == 1:
            if method == "GET":
                return 200, self.endpoints[parts[0]]
            return self.refusal("UpdateEndpointRequest", body, parts[0]) or (200, self.update(parts[0], body))
        return 200, {"workers": self.list_workers, "releases": self.list_releases}[parts[1]](parts[0])

    def refusal(self, name, body, endpoint_id=None):
        if found := violations(name, body):
            return 422, problem("Unprocessable Entity", 422, "Request validation failed.", found)
        if name.startswith("Create") and ("gpu" in body) == ("cpu" in body):
            return 400, problem("Bad Request", 400, "exactly one of gpu or cpu is required")
        gpu = body.get("gpu", {})
        if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
            return 400, problem("Bad Request", 400, "minCudaVersion and allowedCudaVersions are mutually exclusive")
        scaling = body.get("scaling") or self.endpoints.get(endpoint_id, {}).get("scaling", {})
        if scaling.get("type") == "REQUEST_COUNT" and "idleTimeout" in body.get("workers", {}):
            return 422, problem("Unprocessable Entity", 422, "refused", ["$.workers.idleTimeout: not applicable"])
        return None

    def gpu(self, name, pool, memory, price, stock):
        return {
            "id": name, "name": name.removeprefix("NVIDIA "), "pool": pool, "manufacturer": "NVIDIA", "memory": memory,
            "secure": True, "community": True, "price": {"secure": 1.0, "community": 1.0, "serverless": price},
            "maxCount": {"secure": 8, "community": 4}, "availability": stock,
        }  # fmt: skip

    def list_workers(self, endpoint_id):
        if self.hidden:
            self.hidden -= 1
        else:
            self.tick(endpoint_id)
        version = self.versions[endpoint_id] - (self.hidden > 0)
        found = [
            {"id": one.id, "status": one.status, "isStale": one.version < version, "version": one.version,
             "gpuCount": 1,
             "image": one.image, "uptimeSeconds": 5, "gpuTypeId": "NVIDIA GeForce RTX 4090", "dataCenterId": "US-KS-2"}
            for one in self.workers[endpoint_id]
        ]  # fmt: skip
        names = ("running", "idle", "initializing", "throttled", "unhealthy")
        counts = {name: sum(one["status"] == name.upper() for one in found) for name in names}
        return {"workers": found, "summary": counts | {"total": len(found)}, "endpointVersion": version}

    def list_releases(self, endpoint_id):
        latest, total = len(self.fresh(endpoint_id)), len(self.workers[endpoint_id])
        share = {"inProgress": latest < total, "workersOnLatest": latest, "workersTotal": total}
        share["percentOnLatest"] = 100 * latest // total if total else 0
        return {"endpointVersion": self.versions[endpoint_id], "rollout": share, "releases": []}

    def log(self, worker_id, source):
        worker = next((one for held in self.workers.values() for one in held if one.id == worker_id), None)
        if worker is None:
            return None
        build = self.builds.get(worker.image, Build())
        system = ["create container"] + ["start container for x: begin"] * (worker.starts if build.crashes else 1)
        if build.unpullable:
            system = ["error pulling image: manifest for x not found: manifest unknown"] * worker.starts
        lines = {"system": system, "container": list(build.log)}
        return [(name, line) for name in ((source,) if source else lines) for line in lines[name]]

    def job(self, method, endpoint_id, verb, job_id=None, body=None):
        if verb == "run":
            job_id = f"job{next(self.numbers)}"
            self.jobs[job_id] = {"id": job_id, "status": "IN_QUEUE", "input": body["input"], "endpoint": endpoint_id}
            return 200, {"id": job_id, "status": "IN_QUEUE"}
        if verb == "health":
            return 200, {"jobs": {"inQueue": 0, "completed": len(self.jobs)}, "workers": {}}
        if job_id not in self.jobs:
            return 404, problem("Not Found", 404, "job not found")
        job = self.jobs[job_id]
        if verb == "cancel":
            job["status"] = "CANCELLED"
        else:
            self.run_jobs(endpoint_id)
        return 200, {name: value for name, value in job.items() if name not in ("input", "endpoint")}


def problem(title, status, detail, errors=None):
    return {"title": title, "status": status, "detail": detail} | ({"errors": errors} if errors else {})


# The schema of each answer, by a pattern of the path.
ANSWERS = [
    (r"/v2/catalog/gpus$", "ListGpuTypesResponse"),
    (r"/v2/serverless$", {"GET": "ListEndpointsResponse", "POST": "Endpoint"}),
    (r"/v2/serverless/\w+$", "Endpoint"),
    (r"/workers$", "ListEndpointWorkersResponse"),
    (r"/releases$", "ListEndpointReleasesResponse"),
]


def handler_of(fake):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with fake.lock:
                fake.requests.append((self.command, path, body))
                fake.on_request(self.command, path)
                fault = next((one for one in fake.faults if self.matches(one, path)), None)
                if fault:
                    fake.faults.remove(fault)
                    if fault.drop == "after":
                        fake.respond(self.command, path, query, body)
                    if fault.drop:
                        return self.connection.close()
                    return self.write(
                        fault.status, fault.body or problem("Fault", fault.status, "on purpose"), fault.headers
                    )
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    return self.write(401, problem("Unauthorized", 401, "invalid bearer token"))
                if log := re.fullmatch(r"/v2/serverless/\w+/workers/(\w+)/logs", path):
                    return self.stream(fake.log(log.group(1), dict(re.findall(r"(\w+)=(\w+)", query)).get("source")))
                status, value = fake.respond(self.command, path, query, body)
                self.check(path, status, value)
                return self.write(status, value)

        def matches(self, fault, path):
            return fault.method == self.command and re.search(fault.path, path)

        def check(self, path, status, value):
            for pattern, name in ANSWERS:
                if re.search(pattern, path):
                    name = name if isinstance(name, str) else name[self.command]
                    fake.wrong += violations("ErrorResponse" if status >= 400 else name, value)
                    return

        def write(self, status, value, headers=()):
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **dict(headers)}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def stream(self, lines):
            if lines is None:
                return self.write(404, problem("Not Found", 404, "worker not found"))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for source, line in lines:
                event = json.dumps({"ts": CREATED, "source": source, "line": line})
                self.wfile.write(f"id: {CREATED}\ndata: {event}\n\n".encode())
            self.wfile.flush()
            fake.lines_end.wait(5)

        def serve(self):
            try:
                self.answer()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the operator has gone

        do_GET = do_POST = do_PATCH = do_DELETE = serve

        def log_message(self, *_):
            return None

    return Handler
