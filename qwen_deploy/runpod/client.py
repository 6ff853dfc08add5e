"""HTTP to RunPod: the key, the retries, the words for what goes wrong. Knows nothing of endpoints or jobs.

The key goes into the Authorization header and nowhere else, and only to RunPod's hosts.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import FrameType
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import requests.auth

from ..errors import ApiError, NoAnswer, UsageError
from .refusals import KEYS_PAGE, refusal
from .schemas import JsonObject, Problem

TRIES = 5
MAX_PAUSE = 60.0  # seconds; the operator is told of a longer Retry-After, and no request waits for it
CONNECT_SECONDS, READ_SECONDS = 10, 60
PASSING = (429, 500, 502, 503, 504)  # status codes of failures that may be over at the next try
HOSTS = ("runpod.io", "runpod.ai")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Bearer(requests.auth.AuthBase):
    """As an `auth` object: an entry of ~/.netrc would replace a header that is set alone."""

    def __init__(self, key: str):
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def read_key(environment: Mapping[str, str]) -> str:
    """RUNPOD_API_KEY. Raises `UsageError` where it is missing or cannot be a key; never repeats it."""
    key = environment.get("RUNPOD_API_KEY", "").strip()
    if not key:
        raise UsageError(f"RUNPOD_API_KEY is not set. Make a key at {KEYS_PAGE} and `export RUNPOD_API_KEY=...`.")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"RUNPOD_API_KEY must be one printable word of at least 8 characters, not {len(key)} of others."
        )
    return key


@dataclass(frozen=True)
class Clock:
    """Time as all waits here see it: `now` gives seconds, `pause` waits for some."""

    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


REAL_TIME = Clock()


class Client:
    """Requests with the key. `note` takes a sentence for the operator, before each new try."""

    def __init__(
        self, key: str, base: str, clock: Clock = REAL_TIME, note: Callable[[str], None] = lambda sentence: None
    ):
        self.base = base.rstrip("/")
        self.clock, self.note = clock, note
        self.session = requests.Session()
        self.session.auth = Bearer(key)

    def call(
        self, method: str, url: str, subject: str, body: JsonObject | None = None, repeat: bool = True,
        params: Mapping[str, str] | None = None,
    ) -> JsonObject:  # fmt: skip
        """The answer's JSON object; `{}` for an empty answer.

        `url` may be a path of the API. `subject` names what is asked for in error sentences. `repeat`: the request may
        be sent again although RunPod may have acted on it. Raises `ApiError` and `NoAnswer`.
        """
        host = urlsplit(url if "://" in url else self.base).hostname or "RunPod"
        for attempt in range(TRIES):
            is_last = attempt == TRIES - 1
            backoff = min(2.0**attempt, 30.0)
            try:
                response = self.send(method, url, body, params)
            except requests.RequestException as error:
                sent = not never_connected(error)
                if is_last or (sent and not repeat):
                    raise NoAnswer(explain_failure(error, host), sent) from None
                self.wait_to_retry(backoff, f"{host} did not answer")
                continue
            status, retry_after = response.status_code, read_retry_after(response)
            # RunPod does not read a request that it answers with 429; it may act on one before it answers with 5xx.
            may_repeat = (status == 429 or repeat) and (retry_after or 0) <= MAX_PAUSE
            if status not in PASSING or is_last or not may_repeat:
                return read_response(response, subject, body or {}, retry_after)
            self.wait_to_retry(backoff if retry_after is None else retry_after, f"RunPod answered {status}")
        raise AssertionError("the last try returns or raises")

    def send(
        self, method: str, url: str, body: JsonObject | None = None, params: Mapping[str, str] | None = None,
        stream: bool = False, read_seconds: float | None = READ_SECONDS,
    ) -> requests.Response:  # fmt: skip
        """One request. Raises `UsageError` for a host that must not see the key."""
        address = url if "://" in url else self.base + url
        self.require_trusted(address)
        timeout = (CONNECT_SECONDS, read_seconds)
        json = cast(dict[str, Any], body)  # requests' type for JSON takes no `object`
        return self.session.request(
            method, address, json=json, params=params, stream=stream, timeout=timeout, allow_redirects=False
        )

    def wait_to_retry(self, seconds: float, reason: str) -> None:
        self.note(f"{reason}; trying again in {seconds:.0f} s")
        self.clock.pause(seconds)

    def require_trusted(self, address: str) -> None:
        target, base = urlsplit(address), urlsplit(self.base)
        host = target.hostname or ""
        is_loopback = base.hostname in LOOPBACK and host in LOOPBACK
        is_runpod = host == base.hostname or any(host == name or host.endswith(f".{name}") for name in HOSTS)
        if not is_loopback and not (is_runpod and target.scheme == "https"):
            raise UsageError(f"The API key goes to https addresses of RunPod only, not to {target.scheme}://{host}.")


def read_response(response: requests.Response, subject: str, body: JsonObject, retry_after: float | None) -> JsonObject:
    """The JSON object of an answer. Raises `ApiError` for a refusal, and for anything but JSON."""
    status = response.status_code
    if status == 204 or (status < 300 and not response.content):
        return {}
    try:
        value: object = response.json()
    except requests.exceptions.JSONDecodeError:
        value = None
    if status >= 300:
        reason: Problem = {"detail": response.reason or "no reason given"}
        problem = cast(Problem, value) if isinstance(value, dict) else reason
        raise refusal(status, problem, subject, body, retry_after)
    if not isinstance(value, dict):
        raise ApiError(f"RunPod answered {subject} with {status} and no JSON object: is RUNPOD_API_URL right?", status)
    return cast(JsonObject, value)


def read_retry_after(response: requests.Response) -> float | None:
    """The seconds of the header Retry-After, also where it holds a date; None where it is absent or neither."""
    text = response.headers.get("Retry-After", "")
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def never_connected(error: requests.RequestException) -> bool:
    """Whether the connection was not even made: then RunPod cannot have acted on the request."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    names = "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "SSLError"
    return isinstance(error, requests.ConnectTimeout) or type(cause).__name__ in names


def explain_failure(error: requests.RequestException, host: str) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return f"{host} shows no certificate that this machine trusts. Is there a proxy that opens TLS?"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"The proxy of HTTPS_PROXY does not let this machine reach {host}."
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer in time, {TRIES} times over. Try later; https://uptime.runpod.io"
    if never_connected(error):
        return f"This machine cannot reach {host}: no network, no DNS or a firewall."
    return f"{host} dropped the connection before it answered."


@contextmanager
def hold_interrupts() -> Generator[None]:
    """Ctrl-C waits while a request is on its way whose answer says what RunPod has made.

    Raises `KeyboardInterrupt` at the block's end for a signal that arrived within it; a second signal does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if arrived:
            raise KeyboardInterrupt
        arrived.append(number)

    handlers = {number: signal.signal(number, hold) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt
