"""RunPod's REST API v2 beside endpoints: network volumes, Pods, credentials of registries, where what is to be had.

One method for each call. Knows nothing of what a volume is filled with.
"""

from collections.abc import Callable
from typing import TypeVar

from ..errors import ApiError
from .api import Api
from .client import hold_interrupts
from .schemas import CpuType, DataCenter, GpuType, JsonObject, Pod, Registry, Volume
from .shapes import read_shape

Made = TypeVar("Made", Volume, Pod, Registry)


class Storage:
    """All methods raise `ApiError` and `NoAnswer`."""

    def __init__(self, api: Api):
        self.api, self.client = api, api.client

    def volumes(self) -> list[Volume]:
        return self.api.get_list("/v2/network-volumes", "network volumes", "networkVolumes", Volume)

    def create_volume(self, name: str, size: int, data_center: str) -> Volume:
        """`size` in GB."""
        body: JsonObject = {"name": name, "size": size, "dataCenter": data_center}
        return self.create("/v2/network-volumes", f"the volume {name}", body, self.volumes, Volume)

    def grow_volume(self, volume_id: str, size: int) -> Volume:
        """To `size` GB, which may be no less than it has."""
        path, subject = f"/v2/network-volumes/{volume_id}", f"volume {volume_id}"
        return read_shape(self.client.call("PATCH", path, subject, {"size": size}), Volume, subject)

    def delete_volume(self, volume_id: str) -> None:
        self.api.remove(f"/v2/network-volumes/{volume_id}", f"volume {volume_id}")

    def pods(self) -> list[Pod]:
        return self.api.get_list("/v2/pods", "Pods", "pods", Pod)

    def pod(self, pod_id: str) -> Pod | None:
        """None for one that is gone."""
        try:
            return read_shape(self.client.call("GET", f"/v2/pods/{pod_id}", f"Pod {pod_id}"), Pod, f"Pod {pod_id}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def create_pod(self, body: JsonObject) -> Pod:
        return self.create("/v2/pods", f"the Pod {body['name']}", body, self.pods, Pod)

    def delete_pod(self, pod_id: str) -> None:
        with hold_interrupts():  # a Pod that stays costs until somebody sees it
            self.api.remove(f"/v2/pods/{pod_id}", f"Pod {pod_id}")

    def pod_log(self, pod_id: str, source: str, tail: int) -> list[str]:
        """The last lines that were written so far; none of a Pod that is gone, or whose log cannot be read now."""
        log = self.api.read_log(f"/v2/pods/{pod_id}/logs", f"the log of Pod {pod_id}", source, tail, follow=False)
        try:
            return [entry["line"] for entry in log]
        except ApiError:  # the Pod's state tells more than its log
            return []

    def registries(self) -> list[Registry]:
        return self.api.get_list("/v2/registries", "registry credentials", "registries", Registry)

    def create_registry(self, name: str, username: str, password: str) -> Registry:
        body: JsonObject = {"name": name, "username": username, "password": password}
        return self.create("/v2/registries", f"the registry credential {name}", body, self.registries, Registry)

    def data_centers(self) -> list[DataCenter]:
        return self.api.get_list("/v2/catalog/datacenters", "data centres", "dataCenters", DataCenter)

    def pod_cards(self) -> list[GpuType]:
        """Cards with what Pods could have of them now, by data centre."""
        params = {"include": "AVAILABILITY", "product": "POD"}
        return self.api.get_cards(params)

    def pod_cpus(self) -> list[CpuType]:
        """CPU flavours with what Pods could have of them now, by data centre."""
        params = {"include": "AVAILABILITY", "product": "POD"}
        return self.api.get_list("/v2/catalog/cpus", "the catalogue of CPUs", "cpus", CpuType, params)

    def create(
        self, path: str, subject: str, body: JsonObject, listed: Callable[[], list[Made]], kind: type[Made]
    ) -> Made:
        """What the request makes, found by its name where the answer was lost."""
        name = body["name"]
        return self.api.make(path, subject, body, lambda: [one for one in listed() if one["name"] == name], kind)
