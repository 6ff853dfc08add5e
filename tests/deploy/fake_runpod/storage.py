"""What RunPod has beside endpoints: network volumes, which are folders; Pods, which are processes; credentials.

A Pod really runs what its request says, with its volume's folder in place of the mount.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .document import problem, violations

CREATED = "2026-06-01T12:00:00Z"
# Id, tiers of its volumes.
DATA_CENTERS = [("EU-CZ-1", []), ("EU-RO-1", ["STANDARD"]), ("US-KS-2", ["STANDARD", "HIGH_PERFORMANCE"])]
# Id, dollars an hour for a vCPU, stock.
CPUS = [("cpu3c", 0.03, "HIGH"), ("cpu5c", 0.04, "HIGH"), ("cpu9x", 0.01, "NONE")]


@dataclass
class Running:
    """A Pod's process and what it has written; `system` are lines of the host's."""

    process: subprocess.Popen | None
    output: Path
    system: list[str] = field(default_factory=list)

    def kill(self):
        if self.process:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Storage:
    """`pod_env` is what every Pod's environment has beside its request; `unpullable` are images, `full` hardware."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.volumes, self.pods, self.running, self.registries = {}, {}, {}, {}
        self.pod_env, self.unpullable, self.full, self.dearer = {}, set(), set(), 0.0
        self.count = 0

    def new_id(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def add_volume(self, name="qwen-weights", size=110, data_center="US-KS-2"):
        return self.create_volume({"name": name, "size": size, "dataCenter": data_center})

    def create_volume(self, body):
        volume = {"id": self.new_id("vol"), "type": "STANDARD"} | body
        self.volumes[volume["id"]] = volume
        self.mount(volume["id"]).mkdir(parents=True)
        return volume

    def mount(self, volume_id):
        """The folder that the volume is."""
        return self.folder / "volumes" / volume_id

    def add_registry(self, body):
        made = {"id": self.new_id("reg"), "name": body["name"]}
        self.registries[made["id"]] = made
        return made

    def create_pod(self, body):
        pod_id = self.new_id("pod")
        cost = 2 * dict((name, price) for name, price, _ in CPUS)[body["cpu"]["id"]] if "cpu" in body else 1.0
        own = {"id": pod_id, "status": "RUNNING", "actions": ["stop"], "cost": cost + self.dearer, "createdAt": CREATED}
        rest = {"args": "", "ports": [], "env": {}, "registry": None, "disk": 10, "cloud": "SECURE", "mounts": {}}
        unknown = ("cudaVersion", "template", "runtime", "startedAt")
        nothing = {name: None for name in unknown} | {"locked": False, "globalNetworking": {"enabled": False}}
        pod = rest | nothing | {"ssh": {"proxy": None, "direct": None}} | own
        pod |= {name: value for name, value in body.items() if name not in ("dataCenterIds", "cpu")}
        pod["dataCenterId"] = body["dataCenterIds"][0]
        if "cpu" in body:
            pod["cpu"] = body["cpu"] | {"memory": 4}
        self.pods[pod_id] = pod
        self.running[pod_id] = self.start(pod)
        return pod

    def start(self, pod):
        output = Path(tempfile.mkstemp(dir=self.folder, prefix=pod["id"])[1])
        if pod["image"] in self.unpullable:
            pod["status"] = "STARTING"
            return Running(None, output, ["error pulling image: pull access denied for x: unauthorized"] * 2)
        paths = {one["path"]: str(self.mount(one["volumeId"])) for one in pod["mounts"].get("network", [])}
        env = {name: paths.get(value, value) for name, value in pod["env"].items()}
        env |= {"PATH": os.environ["PATH"], "HOME": str(self.folder), "RUNPOD_POD_ID": pod["id"], **self.pod_env}
        program, *arguments = shlex.split(pod["args"])
        assert program == "python"
        with output.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=env, stdout=stream, stderr=stream, start_new_session=True
            )
        return Running(process, output)

    def delete_pod(self, pod_id):
        self.running.pop(pod_id).kill()
        del self.pods[pod_id]

    def pod_log(self, pod_id, source, tail):
        """(source, line) of a Pod's log; None for no such Pod."""
        if pod_id not in self.running:
            return None
        running = self.running[pod_id]
        lines = running.system if source == "system" else running.output.read_text().splitlines()
        return [(source, line) for line in lines[-tail:]]

    def close(self):
        for pod_id in list(self.pods):
            self.delete_pod(pod_id)

    def respond(self, method, path, body):
        """(status, body) of a request to what is kept here."""
        kind, *rest = path.split("/")[2:]
        if kind == "catalog":
            return 200, {"datacenters": data_centers, "cpus": cpus}[rest[0]]()
        kept, listed, created, create, delete = {
            "network-volumes": (self.volumes, "networkVolumes", "CreateNetworkVolumeRequest", self.create_volume,
                                self.volumes.pop),
            "pods": (self.pods, "pods", "CreatePodRequest", self.create_pod, self.delete_pod),
            "registries": (self.registries, "registries", "CreateRegistryRequest", self.add_registry, None),
        }[kind]  # fmt: skip
        if not rest:
            if method == "GET":
                return 200, {listed: list(kept.values())}
            return self.refusal(created, body) or (201, create(body))
        if rest[0] not in kept:
            return 404, problem("Not Found", 404, f"{kind} {rest[0]} not found")
        if method == "DELETE":
            delete(rest[0])
            return 204, None
        if method == "PATCH":
            return self.grow(kept[rest[0]], body)
        return 200, kept[rest[0]]

    def grow(self, volume, body):
        if found := violations("UpdateNetworkVolumeRequest", body):
            return 422, problem("Unprocessable Entity", 422, "Request validation failed.", found)
        if body["size"] < volume["size"]:
            return 400, problem("Bad Request", 400, "size may only increase")
        volume |= body
        return 200, volume

    def refusal(self, schema, body):
        if found := violations(schema, body):
            return 422, problem("Unprocessable Entity", 422, "Request validation failed.", found)
        if schema != "CreatePodRequest":
            return None
        if ("gpu" in body) == ("cpu" in body):
            return 400, problem("Bad Request", 400, "exactly one of gpu or cpu is required")
        if body.get("cpu", body.get("gpu"))["id"] in self.full:
            return 400, problem("Bad Request", 400, "no instances are available for this request")
        for mount in body.get("mounts", {}).get("network", []):
            volume = self.volumes.get(mount["volumeId"])
            if volume is None or volume["dataCenter"] not in body["dataCenterIds"]:
                return 400, problem("Bad Request", 400, "the volume is in another data center")
        return None


def levels(stock):
    """By data centre. One without the resource is left out."""
    return [{"id": name, "name": name, "availability": stock} for name, tiers in DATA_CENTERS if tiers]


def data_centers():
    return {
        "dataCenters": [
            {"id": name, "name": name, "region": "UNKNOWN", "networkVolumeTypes": tiers, "compliance": [],
             "globalNetwork": False}
            for name, tiers in DATA_CENTERS
        ]
    }  # fmt: skip


def cpus():
    return {
        "cpus": [
            {"id": name, "name": name, "group": "Gen", "vcpu": {"min": 2, "max": 32}, "ramGbPerVcpu": 2.0,
             "price": {"securePerVcpu": price, "serverlessPerVcpu": price}, "availability": stock,
             "dataCenters": levels(stock)}
            for name, price, stock in CPUS
        ]
    }  # fmt: skip
