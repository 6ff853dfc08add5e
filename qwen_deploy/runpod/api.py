"""RunPod's REST API v2: endpoints, their workers, releases and logs, and the catalogue of cards.

One method for each call, named as the documentation names it. Knows nothing of what a deployment wants.
"""

import json
from collections.abc import Iterator

import requests

from ..errors import ApiError, NoAnswer
from .client import CONNECT_SECONDS, Client, hold_interrupts
from .refusals import refusal

BASE = "https://api.runpod.io"
LOG_QUIET_SECONDS = 3  # a log stream never ends: what was written before has come once it is quiet for so long
FLASHBOOT_SUFFIX = " -fb"  # which the platform adds to the names of endpoints with FlashBoot


class Api:
    """All methods raise `ApiError` and `NoAnswer`."""

    def __init__(self, client: Client):
        self.client = client

    def endpoints(self) -> list[dict]:
        return self.get_list("/v2/serverless", "the list of endpoints", "endpoints")

    def get_list(self, path: str, what: str, name: str, **options) -> list[dict]:
        found = self.client.call("GET", path, what, **options).get(name)
        if not isinstance(found, list):
            raise ApiError(f"RunPod answered {what} without `{name}`: is RUNPOD_API_URL right?", 200)
        return found

    def endpoints_named(self, name: str) -> list[dict]:
        """The endpoints of this name."""
        return [one for one in self.endpoints() if one["name"] in (name, name + FLASHBOOT_SUFFIX)]

    def endpoint(self, endpoint_id: str) -> dict:
        return self.client.call("GET", f"/v2/serverless/{endpoint_id}", f"endpoint {endpoint_id}")

    def create(self, body: dict) -> dict:
        """The new endpoint. Where the connection drops it is looked for: a second POST would make a second one."""
        for _ in range(2):
            try:
                with hold_interrupts():  # whoever undoes the creation has to find it
                    return self.client.call("POST", "/v2/serverless", "the new endpoint", body, repeat=False)
            except NoAnswer as error:
                if not error.sent:
                    raise
                lost = error
                if found := self.endpoints_named(body["name"]):
                    return found[0]
        raise lost

    def update(self, endpoint_id: str, body: dict) -> dict:
        """The endpoint with the fields of `body` replaced. Sent again after a drop: twice is the same as once."""
        return self.client.call("PATCH", f"/v2/serverless/{endpoint_id}", f"endpoint {endpoint_id}", body)

    def workers(self, endpoint_id: str) -> dict:
        return self.client.call("GET", f"/v2/serverless/{endpoint_id}/workers", f"endpoint {endpoint_id}")

    def releases(self, endpoint_id: str) -> dict:
        return self.client.call("GET", f"/v2/serverless/{endpoint_id}/releases", f"endpoint {endpoint_id}")

    def gpus(self, min_cuda: str | None = None) -> list[dict]:
        """The catalogue of cards with what serverless has of them now, on hosts from this CUDA version."""
        query = {"include": "AVAILABILITY", "product": "SERVERLESS"} | (
            {"minCudaVersion": min_cuda} if min_cuda else {}
        )
        return self.get_list("/v2/catalog/gpus", "the catalogue of cards", "gpus", params=query)

    def logs(
        self, endpoint_id: str, worker_id: str, source: str | None = None, tail: int = 200, follow: bool = False
    ) -> Iterator[dict]:
        """Lines `{"source", "line", "ts"}` of a worker: those written so far, or with `follow` without end.

        A worker that is gone has no lines left.
        """
        query = {"tail": tail} | ({"source": source} if source else {})
        url, what = f"/v2/serverless/{endpoint_id}/workers/{worker_id}/logs", f"the log of worker {worker_id}"
        quiet = None if follow else LOG_QUIET_SECONDS
        try:
            response = self.client.send("GET", url, params=query, stream=True, timeout=(CONNECT_SECONDS, quiet))
            with response:
                if response.status_code == 404:
                    return
                if response.status_code != 200:
                    raise refusal(response.status_code, {"detail": response.reason}, what)
                for line in response.iter_lines(chunk_size=1):
                    if line.startswith(b"data:"):
                        yield json.loads(line[5:])
        except requests.RequestException:
            return  # quiet, or the worker ended
