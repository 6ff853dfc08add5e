"""Who may call: this machine alone, or whoever has the token. Before any body is read.

On loopback there is no token, so that pages of other sites, which a browser on this machine may show, must be kept out:
by the Host header (a name of theirs may lead to 127.0.0.1), by Origin and Sec-Fetch-Site, and by a content type that a
page cannot send without being asked first. Knows nothing of jobs.
"""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .bodies import refusal
from .options import LOOPBACK

OPEN_PATHS = ("/",)  # the start page needs no token


class Guard:
    """ASGI middleware. `token`: what clients must send, None on loopback. `worker_path`: holds the workers' key."""

    def __init__(self, app: ASGIApp, token: str | None, worker_path: str):
        self.app, self.token, self.worker_path = app, token, worker_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        place = scope["path"][: len(self.worker_path)]
        if not hmac.compare_digest(place.encode(), self.worker_path.encode()):  # in constant time
            if refused := self.refuse(scope["method"], scope["path"], Headers(scope=scope)):
                sentence, status = refused
                await refusal(sentence, status)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refuse(self, method: str, path: str, headers: Headers) -> tuple[str, int] | None:
        """The sentence and the status of a refusal; None for whom may pass."""
        host = headers.get("host", "")
        if self.token is None and host_name(host) not in LOOPBACK:
            return "Call this endpoint as localhost or 127.0.0.1: another name in Host is not answered", 403
        if path in OPEN_PATHS:
            return None
        if self.token is not None and not has_token(headers.get("authorization", ""), self.token):
            return (
                "Send the header Authorization: Bearer TOKEN, with the token that the server printed when it started",
                401,
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if (origin is not None and not is_own(origin, host)) or site not in ("none", "same-origin"):
            return "A page of another origin may not call this endpoint; call it from a program or from a server", 403
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if method == "POST" and has_body:
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and not (path.endswith("/images/edits") and kind == "multipart/form-data"):
                return f"Send the body as Content-Type: application/json, not {kind or 'without one'}", 415
        return None


def host_name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_own(origin: str, host: str) -> bool:
    return origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())


def has_token(authorization: str, token: str) -> bool:
    """In constant time."""
    kind, _, given = authorization.partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and kind.lower() == "bearer"
