"""An image URL is fetched from public addresses only, within a byte cap and a total deadline, and never echoed."""

import gzip
import time

import pytest

from qwen_worker.errors import JobError
from qwen_worker.jobs.sources import is_url
from qwen_worker.network import fetch as module
from qwen_worker.network.fetch import fetch
from qwen_worker.network.side_threads import Late, SideThreads

from ..conftest import respond
from ..support.patience import wait_until

MB = 1_000_000


def failure(url, max_bytes=MB, deadline=60):
    started = time.monotonic()
    with pytest.raises(JobError) as caught:
        fetch(url, "image", max_bytes, deadline)
    assert time.monotonic() - started < deadline + 30
    return str(caught.value)


def test_a_url_is_told_from_base64():
    assert is_url("https://example.com/a.png") and is_url("file:///etc/passwd")
    assert not is_url("data:image/png;base64,//8=") and not is_url("aGVsbG8=")


def test_the_body_is_returned(web):
    address = web(lambda handler: respond(handler, b"pixels"))
    assert fetch(address + "/a.png", "image", MB, 60) == b"pixels"


def test_a_redirect_is_followed(web):
    def answer(handler):
        if handler.path == "/a":
            respond(handler, b"", 302, Location="/b")
        else:
            respond(handler, b"pixels")

    assert fetch(web(answer) + "/a", "image", MB, 60) == b"pixels"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/a.png", "gopher://x/", "://x"])
def test_only_http_is_fetched(url):
    assert "image_fetch_failed: image must be an http or https URL" in failure(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:8000/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://0.0.0.0/",
        "http://2130706433/",
    ],
)
def test_addresses_inside_are_refused(url):
    text = failure(url)
    assert text.startswith("image_fetch_failed: image leads to an address that may not be fetched")
    assert "127.0.0.1" not in text and "169.254" not in text


def test_a_redirect_to_an_address_inside_is_refused(web, monkeypatch):
    from runpod.serverless.utils import rp_ssrf

    address = web(lambda handler: respond(handler, b"", 302, Location="http://169.254.169.254/latest/meta-data/"))
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    public = rp_ssrf.is_safe_address
    monkeypatch.setattr(rp_ssrf, "is_safe_address", lambda ip: ip == "127.0.0.1" or public(ip))
    assert "may not be fetched" in failure(address)


@pytest.mark.parametrize("url", ["http://[oops/", "http://x:port/"])
def test_a_url_that_is_none_is_refused(url):
    assert failure(url) == "image_fetch_failed: image is not a valid URL"


def test_a_host_that_does_not_resolve_is_named_as_that():
    assert "does not resolve" in failure("http://no-such-host.invalid/a.png?token=secret")


def test_hosts_hear_the_project_s_name_and_not_a_library_s(web):
    """Also those to which a first one sends on. Some refuse clients that call themselves python-requests."""
    heard = []

    def host(handler):
        heard.append(handler.headers["User-Agent"])
        if handler.path == "/moved":
            return respond(handler, b"", 302, Location="/here")
        refused = heard[-1].startswith("python-requests")
        respond(handler, b"set a User-Agent" if refused else b"picture", 403 if refused else 200)

    assert fetch(web(host) + "/moved", "image", MB, 60) == b"picture"
    assert len(heard) == 2 and all(name.startswith("qwen-image-worker ") for name in heard)


def test_an_error_status_is_told(web):
    assert "HTTP status 404" in failure(web(lambda handler: respond(handler, b"", 404)))


def test_a_declared_size_over_the_cap_is_refused_unread(web):
    address = web(lambda handler: respond(handler, b"x", Content_Length=str(5_000_000_000)))
    assert failure(address) == "invalid_input: image must be at most 1 MB, not 5000.0 MB"


def test_an_undeclared_size_over_the_cap_is_refused_while_reading(web):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * 65536)

    assert "image must be at most 1 MB" in failure(web(endless))


@pytest.mark.parametrize("slow_part", ["headers", "body"])
def test_a_server_that_drips_for_ever_is_left_at_the_deadline(web, gate, slow_part, monkeypatch):
    def drip(handler):
        if slow_part == "body":
            handler.send_response(200)
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not over.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    over = gate()
    monkeypatch.setattr(module, "fetch_threads", SideThreads(1))
    assert "was not fetched" in failure(web(drip), deadline=0.5)
    quick = web(lambda handler: respond(handler, b"pixels"))
    if slow_part == "headers":
        assert "servers are still being waited for" in failure(quick)
        return

    def fetched():
        try:
            return fetch(quick, "image", MB, 60) == b"pixels"
        except JobError as error:
            assert "servers are still being waited for" in str(error)
            return False

    wait_until(fetched)  # the thread that was left behind sees the deadline at its server's next byte


def test_a_compressed_body_is_unpacked_and_capped_as_unpacked(web):
    bodies = {"/small": gzip.compress(b"pixels"), "/bomb": gzip.compress(bytes(100 * MB), 1)}

    def answer(handler):
        respond(handler, bodies[handler.path], Content_Encoding="gzip")

    address = web(answer)
    assert fetch(address + "/small", "image", MB, 60) == b"pixels"
    assert "image must be at most 1 MB" in failure(address + "/bomb")


def test_a_connection_cut_short_is_told(web):
    def cut(handler):
        respond(handler, b"half", Content_Length="100")
        handler.wfile.flush()
        handler.connection.close()

    assert "image_fetch_failed: image " in failure(web(cut))


def test_the_url_is_in_no_error(web):
    address = web(lambda handler: respond(handler, b"", 500))
    assert "secret" not in failure(address + "/a.png?signature=secret")


def test_servers_that_never_answer_are_waited_for_in_bounded_number(web, gate, monkeypatch):
    threads, held = SideThreads(1), gate()
    monkeypatch.setattr(module, "fetch_threads", threads)
    with pytest.raises(Late):  # as long as the gate is shut, whatever the machine is busy with
        threads.run_within(0, held.wait)
    address = web(lambda handler: respond(handler, b""))
    assert "1 servers are still being waited for" in failure(address, deadline=5)
