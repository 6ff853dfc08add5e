"""What RunPod answers to each request: (status, body)."""

from .document import problem, violations
from .storage import levels

HIDDEN = ("input", "endpoint", "reply", "messages")  # what a job's status does not show
STORAGE = ("/v2/network-volumes", "/v2/pods", "/v2/registries", "/v2/catalog/datacenters", "/v2/catalog/cpus")


def respond(platform, method, path, body, query=None):
    if path.startswith("/jobs/"):
        return answer_job(platform, *path.split("/")[2:], body=body)
    if path == "/v2/catalog/gpus":
        return 200, {"gpus": [gpu(*fields, platform.absent) for fields in platform.gpus]}
    if path.startswith(STORAGE):
        return platform.storage.respond(method, path, body)
    if path.startswith("/v2/billing/"):
        return platform.bills.answer(path.split("/")[3], query or {})
    parts = path.split("/")[3:]
    if not parts:
        if method == "GET":
            return 200, {"endpoints": list(platform.endpoints.values())}
        return refusal(platform, "CreateEndpointRequest", body) or (201, platform.create(body))
    if parts[0] not in platform.endpoints:
        return 404, problem("Not Found", 404, "endpoint not found")
    if len(parts) == 1:
        if method == "GET":
            return 200, platform.endpoints[parts[0]]
        if method == "DELETE":
            return 204, platform.delete(parts[0])
        refused = refusal(platform, "UpdateEndpointRequest", body, parts[0])
        return refused or (200, platform.update(parts[0], body))
    return 200, {"workers": platform.list_workers, "releases": platform.list_releases}[parts[1]](parts[0])


def refusal(platform, schema, body, endpoint_id=None):
    """None for a request that RunPod takes."""
    if found := violations(schema, body):
        return 422, problem("Unprocessable Entity", 422, "Request validation failed.", found)
    if schema.startswith("Create") and ("gpu" in body) == ("cpu" in body):
        return 400, problem("Bad Request", 400, "exactly one of gpu or cpu is required")
    gpu = body.get("gpu", {})
    if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
        return 400, problem("Bad Request", 400, "minCudaVersion and allowedCudaVersions are mutually exclusive")
    scaling = body.get("scaling") or platform.endpoints.get(endpoint_id, {}).get("scaling", {})
    if scaling.get("type") == "REQUEST_COUNT" and "idleTimeout" in body.get("workers", {}):
        return 422, problem("Unprocessable Entity", 422, "refused", ["$.workers.idleTimeout: not applicable"])
    return None


def gpu(name, pool, memory, price, stock, absent=()):
    """`absent`: (data centre, name) of cards that a data centre does not have."""
    return {
        "id": name, "name": name.removeprefix("NVIDIA "), "pool": pool, "manufacturer": "NVIDIA", "memory": memory,
        "secure": True, "community": True, "price": {"secure": 1.0, "community": 1.0, "serverless": price},
        "maxCount": {"secure": 8, "community": 4}, "availability": stock,
        "dataCenters": [place for place in levels(stock) if (place["id"], name) not in absent],
    }  # fmt: skip


def answer_job(platform, endpoint_id, verb, job_id=None, body=None):
    if endpoint_id not in platform.endpoints:
        return 404, problem("Not Found", 404, "endpoint not found")
    if verb == "run":
        return 200, platform.add_job(endpoint_id, body["input"], body.get("policy"))
    if verb == "health":
        return 200, {"jobs": platform.count_jobs(endpoint_id), "workers": {}}
    if job_id not in platform.jobs:
        return 404, problem("Not Found", 404, "job not found")
    job = platform.jobs[job_id]
    if verb == "cancel":
        job["status"] = "CANCELLED"
    else:
        platform.run_jobs(endpoint_id)
    return 200, {name: value for name, value in job.items() if name not in HIDDEN}
