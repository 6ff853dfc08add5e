"""RunPod's REST API v2: endpoints, their workers, releases and logs, and the catalogue of cards.

One method for each call, named as the documentation names it. Knows nothing of what a deployment wants.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import requests

from ..errors import ApiError, NoAnswer
from .client import Client, hold_interrupts
from .refusals import refusal
from .schemas import (
    FLASHBOOT_SUFFIX,
    Endpoint,
    EndpointBillRecord,
    GpuType,
    JsonObject,
    LogLine,
    ReleaseList,
    VolumeBillRecord,
    WorkerList,
)
from .shapes import mismatch, read_shape

Item = TypeVar("Item")

BASE = "https://api.runpod.io"
Made = TypeVar("Made", bound=Mapping[str, object])
# A log stream never ends: after so many quiet seconds everything that was written before has arrived.
LOG_QUIET_SECONDS = 3


class Api:
    """All methods raise `ApiError` and `NoAnswer`."""

    def __init__(self, client: Client):
        self.client = client

    def endpoints(self) -> list[Endpoint]:
        return self.get_list("/v2/serverless", "the list of endpoints", "endpoints", Endpoint)

    def get_list(
        self, path: str, subject: str, field: str, kind: type[Item], params: Mapping[str, str] | None = None
    ) -> list[Item]:
        """What the answer holds under `field`."""
        return [read_shape(item, kind, subject) for item in self.get_items(path, subject, field, params)]

    def get_items(self, path: str, subject: str, field: str, params: Mapping[str, str] | None) -> list[object]:
        items = self.client.call("GET", path, subject, params=params).get(field)
        if not isinstance(items, list):
            raise ApiError(f"RunPod answered {subject} without `{field}`: is RUNPOD_API_URL right?", 200)
        return cast(list[object], items)

    def get_cards(self, params: Mapping[str, str]) -> list[GpuType]:
        """The catalogue's cards, without those that are not described as cards are: nobody could choose one."""
        items = self.get_items("/v2/catalog/gpus", "the catalogue of cards", "gpus", params)
        cards = [item for item in items if not mismatch(item, GpuType)]
        return [read_shape(item, GpuType, "the catalogue of cards") for item in cards or items]

    def endpoints_named(self, name: str) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints() if endpoint["name"] in (name, name + FLASHBOOT_SUFFIX)]

    def endpoint(self, endpoint_id: str) -> Endpoint:
        subject = f"endpoint {endpoint_id}"
        return read_shape(self.client.call("GET", f"/v2/serverless/{endpoint_id}", subject), Endpoint, subject)

    def has_endpoint(self, endpoint_id: str) -> bool:
        try:
            self.endpoint(endpoint_id)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def create(self, body: JsonObject) -> Endpoint:
        name = str(body["name"])
        return self.make("/v2/serverless", "the new endpoint", body, lambda: self.endpoints_named(name), Endpoint)

    def make(
        self, path: str, subject: str, body: JsonObject, named: Callable[[], Sequence[Made]], kind: type[Made]
    ) -> Made:
        """What the request makes. After a dropped connection it is searched: a second POST could make another.

        `named`: all that have the name of the body; `kind`: the fields that the answer has.
        """
        for is_last in (False, True):
            try:
                with hold_interrupts():  # what is made has to be known, so that it can be deleted
                    answer = self.client.call("POST", path, subject, body, repeat=False)
                return read_shape(answer, kind, subject)
            except NoAnswer as error:
                if not error.sent:
                    raise
                if found := named():
                    return found[0]
                if is_last:
                    raise
        raise AssertionError("the last try returns or raises")

    def update(self, endpoint_id: str, body: JsonObject) -> Endpoint:
        """The endpoint with the fields of `body` replaced. Sent again after a drop: twice is the same as once."""
        path, subject = f"/v2/serverless/{endpoint_id}", f"endpoint {endpoint_id}"
        return read_shape(self.client.call("PATCH", path, subject, body), Endpoint, subject)

    def delete(self, endpoint_id: str) -> None:
        """Delete the endpoint for good."""
        self.remove(f"/v2/serverless/{endpoint_id}", f"endpoint {endpoint_id}")

    def remove(self, path: str, subject: str) -> None:
        """One that is not there any more, after a dropped answer say, is deleted."""
        try:
            self.client.call("DELETE", path, subject)
        except ApiError as error:
            if error.status != 404:
                raise

    def workers(self, endpoint_id: str) -> WorkerList:
        path, subject = f"/v2/serverless/{endpoint_id}/workers", f"endpoint {endpoint_id}"
        return read_shape(self.client.call("GET", path, subject), WorkerList, f"the workers of {subject}")

    def releases(self, endpoint_id: str) -> ReleaseList:
        path, subject = f"/v2/serverless/{endpoint_id}/releases", f"endpoint {endpoint_id}"
        return read_shape(self.client.call("GET", path, subject), ReleaseList, f"the releases of {subject}")

    def bill(self, days: int, endpoint_id: str | None = None) -> list[EndpointBillRecord]:
        """What endpoints have cost, day by day in UTC: of so many days, of which the last is not over."""
        which = {"serverlessId": endpoint_id} if endpoint_id else {}
        return self.get_bill("serverless", "the bill of endpoints", days, which, EndpointBillRecord)

    def volume_bill(self, days: int, volume_id: str | None = None) -> list[VolumeBillRecord]:
        """What network volumes have cost, day by day in UTC."""
        which = {"networkVolumeId": volume_id} if volume_id else {}
        return self.get_bill("network-volumes", "the bill of volumes", days, which, VolumeBillRecord)

    def get_bill(self, product: str, subject: str, days: int, which: Mapping[str, str], kind: type[Item]) -> list[Item]:
        params = {"bucketSize": "day", "lastN": str(days), **which}
        return self.get_list(f"/v2/billing/{product}", subject, "records", kind, params)

    def gpus(self, min_cuda: str | None = None) -> list[GpuType]:
        """The catalogue of cards with what serverless has of them now, on hosts from this CUDA version."""
        params = {"include": "AVAILABILITY", "product": "SERVERLESS"} | (
            {"minCudaVersion": min_cuda} if min_cuda else {}
        )
        return self.get_cards(params)

    def logs(
        self, endpoint_id: str, worker_id: str, source: str | None = None, tail: int = 200, follow: bool = False
    ) -> Iterator[LogLine]:
        """Lines of a worker: those written so far, or with `follow` without end. A worker that is gone has none."""
        path = f"/v2/serverless/{endpoint_id}/workers/{worker_id}/logs"
        return self.read_log(path, f"the log of worker {worker_id}", source, tail, follow)

    def read_log(self, path: str, subject: str, source: str | None, tail: int, follow: bool) -> Iterator[LogLine]:
        params = {"tail": str(tail)} | ({"source": source} if source else {})
        read_seconds = None if follow else LOG_QUIET_SECONDS
        try:
            with self.client.send("GET", path, params=params, stream=True, read_seconds=read_seconds) as response:
                if response.status_code == 404:
                    return
                if response.status_code != 200:
                    raise refusal(response.status_code, {"detail": response.reason}, subject, {})
                for line in response.iter_lines(chunk_size=1):
                    if line.startswith(b"data:"):
                        yield cast(LogLine, json.loads(line[5:]))
        except requests.RequestException:
            return  # the stream is quiet, or what wrote it has ended
