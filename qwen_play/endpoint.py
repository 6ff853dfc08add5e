"""An endpoint in RunPod's shape, by HTTP: jobs are handed in, asked for and stopped.

The key goes into one header of the requests to the endpoint and nowhere else. Knows nothing of what a job asks for.
"""

import json
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from .errors import NoAnswer, PlayError, UnknownJob, Unreadable, short

REQUEST_BYTES = 10_000_000  # what RunPod takes as the body of /run
RESULT_BYTES = 64_000_000  # the largest picture that is fetched from a bucket
SECONDS = httpx.Timeout(30, connect=10)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Status:
    """Of a job. `output` is the progress or the reply; `seconds` were billed, where the endpoint says so."""

    state: str
    output: dict[str, Any] | None = None
    error: str = ""
    worker: str = ""
    seconds: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


class Endpoint:
    """`url` is the address that /run is added to. Every method raises `PlayError`."""

    def __init__(self, url: str, key: str = ""):
        self.url = url.rstrip("/")
        self.at_home = urlsplit(self.url).hostname in LOOPBACK
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is for the way out, and not for this machine.
        self.client = httpx.Client(headers=headers, timeout=SECONDS, trust_env=not self.at_home)

    def submit(self, fields: dict[str, Any]) -> str:
        """The job's id."""
        body = json.dumps({"input": fields}, ensure_ascii=False).encode()
        if len(body) > REQUEST_BYTES:
            raise PlayError(
                f"The job has {len(body) / 1e6:.1f} MB, and RunPod takes at most {REQUEST_BYTES / 1e6:g} MB. Base64 "
                "makes pictures larger by a third: use pictures of at most 7 MB together, for example JPEGs."
            )
        answer = self.ask("POST", "run", content=body)
        job_id = answer.get("id")
        if not isinstance(job_id, str):
            raise Unreadable(f"{self.url} answered without a job's id. It does not seem to be an endpoint.")
        return job_id

    def status(self, job_id: str) -> Status:
        return read_status(self.ask("GET", f"status/{job_id}"))

    def cancel(self, job_id: str) -> None:
        self.ask("POST", f"cancel/{job_id}")

    def fetch(self, url: str) -> bytes:
        """A picture from a bucket, without the key: a presigned URL is its own permission."""
        host = urlsplit(url).hostname
        try:
            with httpx.stream("GET", url, timeout=SECONDS, follow_redirects=True) as answer:
                answer.raise_for_status()
                data = b""
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > RESULT_BYTES:
                        raise PlayError(f"The picture at {host} has more than {RESULT_BYTES / 1e6:g} MB.")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PlayError(f"The picture could not be fetched from {host}: {type(error).__name__}.") from None
        return data

    def ask(self, method: str, route: str, content: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if content else {}
        try:
            answer = self.client.request(method, f"{self.url}/{route}", content=content, headers=headers)
        except httpx.HTTPError as error:
            how = " Start one with: make serve" if self.at_home else ""
            raise NoAnswer(f"No endpoint answers at {self.url} ({type(error).__name__}).{how}") from None
        if answer.is_error:
            raise self.refusal(route, answer)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreadable(f"{self.url} answered something else than JSON. It does not seem to be an endpoint.")
        return cast("dict[str, Any]", body)

    def refusal(self, route: str, answer: httpx.Response) -> PlayError:
        code = answer.status_code
        if code in (401, 403):
            return PlayError(f"{self.url} refuses the key ({code}). Set RUNPOD_API_KEY to a key of this account.")
        if code == 404 and route.startswith(("status/", "cancel/")):
            return UnknownJob("The endpoint does not know this job any longer. Results are kept for 30 minutes.")
        if code == 404:
            return PlayError(f"There is no endpoint at {self.url} (404). Check the endpoint's id.")
        if code == 413:
            return PlayError("The endpoint refuses the job because it is too large (413). Use smaller pictures.")
        if code == 429 or code >= 500:
            return NoAnswer(f"{self.url} is too busy or broken ({code}). Try again in a moment.")
        try:
            reason = error_sentence(answer.json().get("error"))
        except (ValueError, AttributeError):  # no JSON, or no object
            reason = short(answer.text)
        return PlayError(f"{self.url} refuses the job ({code}): {reason or 'no reason given'}")


def read_status(answer: dict[str, Any]) -> Status:
    """A streaming endpoint's output is a list, whose last item is the newest."""
    output = answer.get("output")
    if isinstance(output, list):
        output = cast("list[Any]", output)[-1] if output else None
    milliseconds = answer.get("executionTime")
    return Status(
        str(answer.get("status", "")),
        cast("dict[str, Any]", output) if isinstance(output, dict) else None,
        error_sentence(answer.get("error")),
        str(answer.get("workerId") or ""),
        milliseconds / 1000 if isinstance(milliseconds, int | float) else None,
    )


def error_sentence(error: object) -> str:
    """Of an `error` that is a text, or an object as JSON text with the sentence inside, as RunPod passes them on."""
    if isinstance(error, str) and error.startswith("{"):
        try:
            error = json.loads(error)
        except ValueError:
            return short(str(error))
    if isinstance(error, dict):
        inner = cast("dict[str, Any]", error)
        return error_sentence(inner.get("error_message") or inner.get("message") or inner.get("error") or str(inner))
    return short(str(error or ""), 1000)
