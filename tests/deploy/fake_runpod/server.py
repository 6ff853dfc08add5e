"""The platform behind HTTP on loopback: the key, faults on demand, and a record of what was sent."""

import json
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

from .document import problem, violations_of_answer
from .platform import CREATED, Platform
from .routes import respond
from .storage import Storage

LATE_LINE = "This line came after a minute of quiet."
KEY = "rpa_TESTKEY0123456789abcdef"


@dataclass
class Fault:
    """One answer that goes wrong: `status` with `headers`, or the connection `drop`ped before or after the work."""

    method: str
    path: str
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: object = None
    drop: str = ""  # "before" or "after"

    def matches(self, method, path):
        return self.method == method and re.search(self.path, path)


class FakeRunPod(Platform):
    """`requests` are (method, path, body); `wrong` what this fake answered against the document."""

    def __init__(self):
        super().__init__()
        self.storage = Storage(tempfile.mkdtemp(prefix="fake-runpod-"))
        self.requests: list[tuple[str, str, object]] = []
        self.faults: list[Fault] = []
        self.wrong: list[str] = []
        self.lock = threading.RLock()
        self.on_request = lambda method, path: None  # for a test that interrupts at a certain request
        self.lines_end = threading.Event()  # a log stream stays open until it is set
        self.lines_end.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.fake = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.storage.close()
        shutil.rmtree(self.storage.folder)

    @property
    def writes(self):
        """Every request that changes something or costs something."""
        return [request for request in self.requests if request[0] != "GET"]

    def writes_to(self, path):
        return [request for request in self.writes if request[1].startswith(path)]


class Handler(BaseHTTPRequestHandler):
    def serve(self):
        try:
            self.answer(self.server.fake)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the operator has gone

    do_GET = do_POST = do_PATCH = do_DELETE = serve

    def answer(self, fake):
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with fake.lock:
            fake.requests.append((self.command, path, body))
            fake.on_request(self.command, path)
            if fault := next((one for one in fake.faults if one.matches(self.command, path)), None):
                fake.faults.remove(fault)
                return self.go_wrong(fake, fault, path, body)
            if self.headers.get("User-Agent", "").startswith("Python-urllib"):
                return self.write(403, "error code: 1010")  # RunPod's firewall turns this name away
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                return self.write(401, problem("Unauthorized", 401, "invalid bearer token"))
            if log := re.fullmatch(r"/v2/serverless/\w+/workers/(\w+)/logs", path):
                return self.stream(fake, fake.log(log.group(1), dict(re.findall(r"(\w+)=(\w+)", query)).get("source")))
            asked = dict(parse_qsl(query))
            if log := re.fullmatch(r"/v2/pods/(\w+)/logs", path):
                return self.stream(fake, fake.storage.pod_log(log.group(1), asked["source"], int(asked["tail"])))
            status, value = respond(fake, self.command, path, body, asked)
            fake.wrong += violations_of_answer(self.command, path, status, value)
            return self.write(status, value)

    def go_wrong(self, fake, fault, path, body):
        if fault.drop == "after":
            respond(fake, self.command, path, body)
        if fault.drop:
            return self.connection.close()
        return self.write(fault.status, fault.body or problem("Fault", fault.status, "on purpose"), fault.headers)

    def write(self, status, value, headers=()):
        data = b"" if status == 204 else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, fake, lines):
        if lines is None:
            return self.write(404, problem("Not Found", 404, "worker not found"))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for source, line in lines:
            self.write_line(source, line)
        if not fake.lines_end.wait(60):
            self.write_line("container", LATE_LINE)

    def write_line(self, source, line):
        event = json.dumps({"ts": CREATED, "source": source, "line": line})
        self.wfile.write(f"id: {CREATED}\ndata: {event}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_):
        return None
