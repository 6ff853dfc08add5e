"""HTTP to RunPod: the key, the retries, the words for what goes wrong. Knows nothing of endpoints or jobs.

The key goes into the Authorization header and nowhere else, and only to RunPod's hosts.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from ..errors import ApiError, NoAnswer, UsageError
from .refusals import KEYS_PAGE, refusal

TRIES = 5
MAX_PAUSE = 60.0  # seconds; a Retry-After beyond it is told to the operator instead of waited for
CONNECT_SECONDS, READ_SECONDS = 10, 60
PASSING = (429, 500, 502, 503, 504)
HOSTS = ("runpod.io", "runpod.ai")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Bearer(requests.auth.AuthBase):
    """As an `auth` object: a header alone would be replaced by an entry of ~/.netrc."""

    def __init__(self, key: str):
        self.key = key

    def __call__(self, request):
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def read_key(environment) -> str:
    """RUNPOD_API_KEY. Raises `UsageError` where it is missing or cannot be a key; never repeats it."""
    key = environment.get("RUNPOD_API_KEY", "").strip()
    if not key:
        raise UsageError(f"RUNPOD_API_KEY is not set. Make a key at {KEYS_PAGE} and `export RUNPOD_API_KEY=...`.")
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"RUNPOD_API_KEY must be one printable word of at least 8 characters, not {len(key)} of others."
        )
    return key


class Client:
    """Requests with the key. `pause` takes seconds; `note` takes a sentence for the operator, before each new try."""

    def __init__(
        self,
        key: str,
        base: str,
        pause: Callable[[float], None] = time.sleep,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.base = base.rstrip("/")
        self.pause, self.note = pause, note
        self.session = requests.Session()
        self.session.auth = Bearer(key)

    def call(self, method: str, url: str, what: str, body: dict | None = None, repeat: bool = True, **options) -> dict:
        """The answer's JSON object; `{}` for an empty answer.

        `url` may be a path of the API. `what` names the thing in error sentences. `repeat`: the request may be sent
        again where it may have been taken already. Raises `ApiError` and `NoAnswer`.
        """
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                response = self.send(method, url, json=body, **options)
            except requests.RequestException as error:
                sent = not never_connected(error)
                if last or (sent and not repeat):
                    raise NoAnswer(explain_failure(error, self.host(url)), sent) from None
                self.wait_to_retry(backoff(attempt), f"{self.host(url)} did not answer")
                continue
            status = response.status_code
            asked = read_retry_after(response)
            # 429 was refused unread; a 5xx may have done its work before it failed.
            hopeless = last or (status != 429 and not repeat) or (asked or 0) > MAX_PAUSE
            if status not in PASSING or hopeless:
                return read_response(response, what, body, asked)
            self.wait_to_retry(asked if asked is not None else backoff(attempt), f"RunPod answered {status}")
        raise AssertionError("the last try returns or raises")

    def send(self, method: str, url: str, **options) -> requests.Response:
        """One request. Raises `UsageError` for a host that must not see the key."""
        full = url if "://" in url else self.base + url
        self.require_trusted(full)
        options = {"timeout": (CONNECT_SECONDS, READ_SECONDS), "allow_redirects": False} | options
        return self.session.request(method, full, **options)

    def wait_to_retry(self, seconds: float, reason: str) -> None:
        self.note(f"{reason}; trying again in {seconds:.0f} s")
        self.pause(seconds)

    def host(self, url: str) -> str:
        return urlsplit(url if "://" in url else self.base).hostname or "RunPod"

    def require_trusted(self, url: str) -> None:
        parts, home = urlsplit(url), urlsplit(self.base)
        host = parts.hostname or ""
        local = home.hostname in LOOPBACK and host in LOOPBACK
        ours = host == home.hostname or any(host == name or host.endswith(f".{name}") for name in HOSTS)
        if not local and not (ours and parts.scheme == "https"):
            raise UsageError(f"The API key goes to https addresses of RunPod only, not to {parts.scheme}://{host}.")


def read_response(response: requests.Response, what: str, body: dict | None, asked: float | None) -> dict:
    status = response.status_code
    if status == 204 or (status < 300 and not response.content):
        return {}
    try:
        value = response.json()
    except requests.exceptions.JSONDecodeError:
        value = None
    if status >= 300:
        problem = value if isinstance(value, dict) else {"detail": response.reason or "no reason given"}
        raise refusal(status, problem, what, body, asked)
    if not isinstance(value, dict):
        raise ApiError(f"RunPod answered {what} with {status} and no JSON object: is RUNPOD_API_URL right?", status)
    return value


def read_retry_after(response: requests.Response) -> float | None:
    """The header's seconds, also where it holds a date; None where it is absent or neither."""
    text = response.headers.get("Retry-After", "")
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def backoff(attempt: int) -> float:
    return min(2.0**attempt, 30.0)


def never_connected(error: requests.RequestException) -> bool:
    """Whether the connection was not even made: then the request cannot have been taken."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    made = "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "SSLError"
    return isinstance(error, requests.ConnectTimeout) or type(reason).__name__ in made


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
def hold_interrupts() -> Iterator[None]:
    """Raises `KeyboardInterrupt` at the block's end for a signal that came within it; a second one is not held."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def hold(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, hold) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
