"""Who may call the endpoint, and how: a page of another site, another name, a wrong token, a body that is too large."""

import http.client

import pytest

from qwen_local.start_page import start_page

from .conftest import WORKER_KEY

JOB = {"input": {"prompt": "a"}}
TOKEN = {"Authorization": "Bearer right-token"}


@pytest.fixture
def home(doorway):
    return doorway()


def status_of(answer):
    assert "Access-Control-Allow-Origin" not in answer.headers
    return answer.status_code


def queued(home):
    return home.plane.health()["jobs"]["inQueue"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost@evil.example", "[", ""])
def test_a_name_that_only_leads_here_is_not_answered(home, host):
    assert status_of(home.get("health", headers={"Host": host})) == 403
    assert status_of(home.call("GET", "/", headers={"Host": host})) == 403
    assert status_of(home.post("run", json=JOB, headers={"Host": host})) == 403 and queued(home) == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_the_names_of_this_machine_are_answered(home, host):
    assert status_of(home.get("health", headers={"Host": host})) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_can_do_nothing(home, headers):
    job = home.post("run", json=JOB).json()["id"]
    for path in ("run", "runsync", "openai/v1/images/generations"):
        assert status_of(home.post(path, json=JOB, headers=headers)) == 403
    for path in (f"cancel/{job}", "purge-queue", f"retry/{job}"):
        assert status_of(home.post(path, headers=headers)) == 403
    form = {"files": {"image": b"x"}, "data": {"prompt": "a"}}
    assert status_of(home.post("openai/v1/images/edits", headers=headers, **form)) == 403
    assert status_of(home.get(f"stream/{job}", headers=headers)) == 403
    assert queued(home) == 1


def test_a_page_of_this_server_itself_may_call_it(home):
    own = {"Origin": home.root, "Sec-Fetch-Site": "same-origin"}
    assert status_of(home.post("run", json=JOB, headers=own)) == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_body_of_a_type_that_a_page_may_send_unasked_is_refused(home, kind):
    for path in ("run", "runsync", "openai/v1/images/generations"):
        answer = home.post(path, data=b'{"input": {"prompt": "a"}}', headers={"Content-Type": kind})
        assert status_of(answer) == 415 and "Send the body as Content-Type: application/json" in answer.json()["error"]
    assert queued(home) == 0


def test_with_a_token_nothing_but_the_start_page_is_answered_without_it(doorway):
    home = doorway(token="right-token")
    named = {"Host": "studio.example:8000"}
    for wrong in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "right-token"},
        {"Authorization": "Bearer ä"},
    ):
        headers = {name: value.encode() for name, value in (named | wrong).items()}
        assert status_of(home.get("health", headers=headers)) == 401
        assert status_of(home.post("run", json=JOB, headers=headers)) == 401
    assert status_of(home.get("health", headers=named | TOKEN)) == 200
    assert status_of(home.post("run", json=JOB, headers=named | TOKEN)) == 200
    assert status_of(home.post("run", json=JOB, headers=named | TOKEN | {"Origin": "https://evil.example"})) == 403
    page = home.call("GET", "/", headers=named)
    assert status_of(page) == 200 and "Authorization: Bearer TOKEN" in page.text and "right-token" not in page.text


def test_the_workers_routes_answer_to_nobody_without_their_key(home):
    job = home.post("run", json=JOB).json()["id"]
    for place in ("/v2", "/v2/local", "/workers", "/workers/", "/workers/wrong", f"/workers/{WORKER_KEY[:-1]}x"):
        assert status_of(home.call("GET", f"{place}/job-take/worker-1")) == 404
        assert status_of(home.call("POST", f"{place}/job-done/worker-1/{job}", json={"output": 1})) in (404, 405)
    assert home.get(f"status/{job}").json()["status"] == "IN_QUEUE"
    taken = home.call("GET", f"/workers/{WORKER_KEY}/job-take/worker-1")
    assert taken.json() == {"id": job, **JOB}


@pytest.mark.parametrize(("path", "most"), [("run", 10), ("runsync", 20), ("openai/v1/images/edits", 20)])
def test_a_body_above_the_platform_s_limit_is_refused_and_not_kept(home, path, most):
    for stated in (True, False):
        large = (b"x" * 1_000_000 for _ in range(most + 1))
        body = b"".join(large) if stated else large
        answer = home.post(path, data=body, headers={"Content-Type": "application/json"})
        assert status_of(answer) == 413 and f"more than {most} MB" in answer.json()["error"]
    assert queued(home) == 0


def test_a_large_body_is_refused_before_it_is_sent_where_the_client_asks_first(home):
    connection = http.client.HTTPConnection("127.0.0.1", home.server.server_port, timeout=60)
    connection.putrequest("POST", "/v2/local/run")
    for name, value in {
        "Content-Type": "application/json",
        "Expect": "100-continue",
        "Content-Length": "60000000",
    }.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_the_start_page_says_what_to_call_and_loads_nothing_from_elsewhere(home):
    page = home.call("GET", "/")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "curl -s http://127.0.0.1:8000/v2/local/runsync" in page.text and "<script" not in page.text
    assert "<code>make play</code>" in page.text


def test_the_start_page_leads_to_the_playground_that_it_was_told():
    page = start_page("http://127.0.0.1:8000", False, 'http://127.0.0.1:7860/?a=1&b="><script>')
    assert 'href="http://127.0.0.1:7860/?a=1&amp;b=&quot;&gt;&lt;script&gt;"' in page and "make play" not in page


def test_no_file_and_no_page_of_the_framework_is_served(home):
    for path in (
        "/docs",
        "/openapi.json",
        "/redoc",
        "/Makefile",
        "/../Makefile",
        "/static/x",
        "/v2/local",
        "/v2/other/health",
    ):
        answer = home.call("GET", path)
        assert status_of(answer) == 404 and set(answer.json()) == {"error"}
    assert status_of(home.get("run")) == 405
