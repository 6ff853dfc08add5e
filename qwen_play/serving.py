"""The page on a port: Gradio without any request to another machine. Knows nothing of the endpoint at home."""

# Gradio is in the page's own environment, and not in the one where types are checked.
# pyright: reportMissingImports=false

import threading
from html import escape

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .endpoint import LOOPBACK
from .jobs import Jobs
from .page import STYLE, lay_out, theme
from .uploads import UPLOAD_MB
from .wiring import Wiring

TITLE = "Qwen-Image playground"
# Gradio narrows the rules of a style sheet to what is inside its own frame. These are for the frame itself.
FRAME = """<style>
.gradio-container .main.app { max-width: 1280px !important; }
@media (max-width: 640px) { .gradio-container .main.app { padding: 0.75rem !important; } }
</style>"""
HEAD = f"<meta name='referrer' content='no-referrer'>{FRAME}"


class OwnRequestsOnly:
    """Refuses what a page of another site sends here: a browser says so of every request that is one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "GET":
            if Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site"):
                await PlainTextResponse("Another site may not use this page.", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def serve(jobs: Jobs, host: str, port: int, auth: tuple[str, str] | None) -> None:
    """Until the process is told to end. Prints the address once the page answers."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        page = lay_out(escape(jobs.endpoint.url), small=jobs.endpoint.at_home)
        Wiring(page, jobs).connect(blocks)
    blocks.queue(default_concurrency_limit=None)
    # A name that another site points at this machine is no way in.
    hosts = [*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(OwnRequestsOnly)]
    blocks.launch(
        server_name=host, server_port=port, auth=auth, quiet=True, prevent_thread_lock=True, ssr_mode=False,
        share=False, inbrowser=False, theme=theme(), css_paths=STYLE, head=HEAD, footer_links=[],
        max_file_size=f"{UPLOAD_MB}mb", enable_monitoring=False, pwa=False, show_error=False, run_history=False,
        app_kwargs={"middleware": guards},
    )  # fmt: skip
    print(f"The playground is at http://{host}:{port} and draws on {jobs.endpoint.url}", flush=True)
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)
