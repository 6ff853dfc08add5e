"""The page in Chromium: on the endpoint at home with the tiny checkpoint, or on an endpoint that a test speaks for."""

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ...conftest import ROOT, free_port, respond
from ...support.patience import wait_until

CHROMIUM = Path("/usr/bin/chromium")
PYTHON = ROOT / ".venv-play/bin/python"
SHOTS = ROOT / "out/play"
KEY = "rpa_a_key_that_nobody_may_see"


@pytest.fixture(scope="package")  # playwright's event loop runs as long, in which no other test could run one
def chromium():
    """The browser, which takes no address but this machine's; skipped where it or the page is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-play")
    if not CHROMIUM.exists():
        pytest.skip("Debian's package chromium is not installed")
    if not PYTHON.exists():
        pytest.skip("the page is not installed: make .venv-play/installed")
    # Chromium's sandbox does not start as root. The resolver knows no other host, so that nothing can leave unnoticed.
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


class PlayProcess:
    """`with PlayProcess(...) as play:`; `address` is where the page is, and `lines` what the process has printed."""

    def __init__(self, *options, **variables):
        self.options, self.lines = options, []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "QWEN_"))}
        self.env = {**kept, "NO_PROXY": "*", **variables}

    def __enter__(self):
        command = [str(PYTHON), "-m", "qwen_play", "--port", str(free_port()), *self.options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()
        wait_until(lambda: self.address or self.process.poll() is not None, heard=lambda: len(self.lines))
        assert self.address, self.lines
        return self

    @property
    def address(self):
        found = re.search(r"The playground is at (\S+)", "".join(self.lines))
        return found[1] if found else None

    def __exit__(self, *_):
        self.process.terminate()
        wait_until(lambda: self.process.poll() is not None)
        self.reader.join(10)
        self.process.stdout.close()


class PageDriver:
    """What a visitor does and sees. `faults` are errors on the console and requests to other machines."""

    def __init__(self, browser, address, **look):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | look))
        self.page, self.faults, self.address = self.context.new_page(), [], address
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self.check_request)
        self.page.set_default_timeout(60_000)
        self.open()

    def check_request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.faults.append(request.url)

    def open(self):
        self.page.goto(self.address)
        self.page.wait_for_selector("#play-draw")
        self.page.wait_for_function("localStorage.length > 0")  # the page has heard of this visitor

    def status(self):
        return self.page.inner_text("#play-status")

    def wait(self, *words):
        """Until the status has one of the words; every text that the status had meanwhile."""
        seen = []

        def is_there():
            text = self.status()
            if text not in seen:
                seen.append(text)
            return any(word in text for word in words)

        wait_until(is_there, heard=lambda: len(seen))
        return seen

    def fill(self, **fields):
        for name, text in fields.items():
            self.page.fill(f"#play-{name} textarea, #play-{name} input", text)

    def draw(self, prompt, **fields):
        self.fill(prompt=prompt, **fields)
        self.page.click("#play-draw")
        wait_until(lambda: "Done" not in self.status() and "Error" not in self.status())

    def image(self):
        """The shown picture, as an image in RGB."""
        import io

        from PIL import Image

        url = self.page.get_attribute("#play-picture img", "src")
        return Image.open(io.BytesIO(self.page.request.get(url).body())).convert("RGB")

    def choose(self, *files):
        self.page.set_input_files("#play-pictures input[type=file]", list(files))

    def shoot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def close(self):
        self.context.close()


@pytest.fixture(scope="package")
def play(chromium):
    """The page on the endpoint at home."""
    with PlayProcess("--local-port", str(free_port()), "--price", "1.5") as process:
        yield process


@pytest.fixture
def open_page(chromium):
    """open_page(address, **look): a visitor of the page, who has seen no fault when the test ends."""
    pages = []

    def opened(address, **look):
        pages.append(PageDriver(chromium, address, **look))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()
        assert not page.faults


class SpokenEndpoint:
    """An endpoint whose answers a test gives: `refusal` is a status for everything, `states` are told one by one."""

    def __init__(self):
        self.refusal, self.states, self.sent, self.keys = 0, [], [], set()

    def __call__(self, handler):
        self.keys.add(handler.headers.get("Authorization"))
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if self.refusal:
            return respond(handler, b"{}", self.refusal)
        if handler.path.endswith("/run"):
            self.sent.append(json.loads(body)["input"])
            answer = {"id": "job-1", "status": "IN_QUEUE"}
        else:
            answer = {"id": "job-1", **(self.states.pop(0) if len(self.states) > 1 else self.states[0])}
        time.sleep(0.01)
        return respond(handler, json.dumps(answer).encode(), Content_Type="application/json")
