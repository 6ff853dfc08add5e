"""The endpoint as one ASGI application: its routes, what their errors become, and the guard before them."""

from collections.abc import Callable

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from .bodies import ClientGone, TooLarge, refusal
from .client_api import client_routes
from .guard import Guard
from .openai_api import openai_routes
from .plane import Plane, UnknownJob
from .request import BadRequest
from .start_page import HEADERS
from .worker_api import worker_routes

ENDPOINT = "local"


def bare_app(*routers: tuple[str, APIRouter]) -> FastAPI:
    """Routes below their prefixes; without pages of FastAPI's own, which load scripts from elsewhere."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for prefix, routes in routers:
        app.include_router(routes, prefix=prefix)

    async def bad_request(_: Request, error: Exception) -> Response:
        return refusal(str(error), 400)

    async def too_large(_: Request, error: Exception) -> Response:
        return refusal(str(error), 413)

    async def unknown_job(_: Request, __: Exception) -> Response:
        return refusal("There is no such job: its id is wrong, or its result is no longer kept", 404)

    async def client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return refusal(f"{request.method} {request.url.path} is no route of this endpoint", status)

    for kind, handler in {
        BadRequest: bad_request, TooLarge: too_large, UnknownJob: unknown_job, ClientGone: client_gone,
        HTTPException: no_route,
    }.items():  # fmt: skip
        app.add_exception_handler(kind, handler)
    return app


def endpoint_app(plane: Plane, worker_key: str, token: str | None, page: Callable[[], str]) -> ASGIApp:
    """`worker_key`: the secret part of the workers' addresses. `page`: the start page."""
    prefix = f"/v2/{ENDPOINT}"
    front = APIRouter()

    @front.get("/")
    async def start() -> Response:
        return HTMLResponse(page(), headers=HEADERS)

    app = bare_app(
        ("", front),
        (prefix, client_routes(plane)),
        (f"{prefix}/openai", openai_routes(plane)),
        (worker_path(worker_key), worker_routes(plane)),
    )
    return Guard(app, token, f"{worker_path(worker_key)}/")


def worker_path(worker_key: str) -> str:
    return f"/workers/{worker_key}"
