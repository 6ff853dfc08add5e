"""A prompt is rewritten by the operator's endpoint within its deadline, or the failure is told without a secret."""

import gzip
import json
import threading
import time

import pytest

from qwen_worker.errors import Cancelled
from qwen_worker.network import rewrite as module
from qwen_worker.network.rewrite import RewriteFailed, Rewriter, rewriter_from_settings
from qwen_worker.network.side_threads import SideThreads
from qwen_worker.settings import Misconfigured, Settings

from ..conftest import respond, serve
from ..support.chat_server import ChatServer, completion, send
from ..support.patience import wait_until

KEY = "sk-s3cr3t"


@pytest.fixture
def rewriter():
    """rewriter(server, seconds): one that asks the server, which is at a private address, as an operator's may be."""
    servers = []

    def new(server, seconds=20, key=KEY):
        servers.append(serve(server))
        return Rewriter(f"http://127.0.0.1:{servers[-1].server_port}/v1/chat/completions", "writer", key, seconds)

    yield new
    for server in servers:
        server.shutdown()
        server.server_close()


def failure(rewriter, pictures=()):
    """The words of a failure, in which there is neither an address nor the key."""
    with pytest.raises(RewriteFailed) as caught:
        rewriter.rewrite("a fox", pictures)
    words = str(caught.value)
    assert KEY not in words and "127.0.0.1" not in words and "a fox" not in words
    return words


def test_a_prompt_goes_to_the_chat_and_comes_back(rewriter):
    server = ChatServer("  a red fox in deep snow\n")
    assert rewriter(server).rewrite("a fox", ()) == "a red fox in deep snow"
    (path, headers, body) = server.asked[0]
    assert (path, body["model"], set(body)) == ("/v1/chat/completions", "writer", {"model", "messages"})
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["User-Agent"].startswith("qwen-image-worker ")
    system, user = server.messages
    assert "draws pictures from text" in system and user == "a fox"


def test_pictures_go_with_an_instruction_to_edit_them(rewriter):
    server = ChatServer()
    rewriter(server).rewrite("make it red", ["data:image/jpeg;base64,aGk=", "data:image/jpeg;base64,aGV5"])
    system, user = server.messages
    assert "edits pictures" in system
    assert user == [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGV5"}},
        {"type": "text", "text": "make it red"},
    ]


def test_without_a_key_none_is_sent_also_not_one_of_netrc(rewriter, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login operator password hush\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for key in ("", KEY):
        server = ChatServer()
        rewriter(server, key=key).rewrite("a fox", ())
        assert server.asked[0][1].get("Authorization") == (f"Bearer {key}" if key else None)


@pytest.mark.parametrize(
    "text",
    [
        "<think>what do they want?\n</think>\n\na fox",
        "\n<think></think>a fox",
        "Okay, a fox it is.\n</think>\n\na fox",  # the opening tag stood in the chat's template
        "<think>well</think><think>or not</think>a fox",
    ],
)
def test_the_thoughts_of_a_reasoning_model_are_no_part_of_the_prompt(rewriter, text):
    assert rewriter(ChatServer(text)).rewrite("x", ()) == "a fox"


HTML = b"<!doctype html><title>502 Bad Gateway</title>"
FAILURES = {
    "an error": (lambda handler: respond(handler, HTML, 500), "HTTP status 500"),
    "HTML": (lambda handler: respond(handler, HTML, Content_Type="text/html"), "its answer is no chat completion"),
    "no UTF-8": (lambda handler: respond(handler, b'{"choices": "\xff"}'), "its answer is no chat completion"),
    "another shape": (lambda handler: send(handler, {"output": "a fox"}), "its answer is no chat completion"),
    "a list": (lambda handler: send(handler, [1]), "its answer is no chat completion"),
    "no choices": (lambda handler: send(handler, {"choices": []}), "its answer is no chat completion"),
    "choices of text": (lambda handler: send(handler, {"choices": ["a fox"]}), "its answer is no chat completion"),
    "parts": (lambda handler: send(handler, completion([{"type": "text"}])), "its answer is no chat completion"),
    "deep nesting": (lambda handler: respond(handler, b"[" * 100_000), "its answer is no chat completion"),
    "nothing": (lambda handler: send(handler, completion("")), "its answer is empty"),
    "null": (lambda handler: send(handler, completion(None)), "its answer is empty"),
    "thoughts alone": (lambda handler: send(handler, completion("<think>well</think> \n")), "its answer is empty"),
    "thoughts without an end": (
        lambda handler: send(handler, completion("<think>what do they want? a fox")),
        "its answer is an unfinished thought",
    ),
    "what a filter left": (
        lambda handler: send(handler, completion("a fo", "content_filter")),
        "its answer was withheld by a content filter",
    ),
    "a part": (lambda handler: send(handler, completion("a fo", "length")), "its answer was cut short"),
    "two megabytes": (
        lambda handler: send(handler, completion("fox " * 500_000)),
        "its answer must be at most 1 MB, not 2.0 MB",
    ),
    "two megabytes, packed": (
        lambda handler: respond(
            handler, gzip.compress(json.dumps(completion("fox " * 500_000)).encode()), Content_Encoding="gzip"
        ),
        "its answer must be at most 1 MB, not more",
    ),
    "a broken connection": (
        lambda handler: respond(handler, b'{"choices"', Content_Length="100"),
        "no answer (ProtocolError)",
    ),
    "no HTTP": (lambda handler: handler.wfile.write(b"hello\r\n"), "no answer (ConnectionError)"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_an_answer_that_is_none_is_told_in_the_worker_s_own_words(rewriter, what):
    answer, words = FAILURES[what]
    assert failure(rewriter(ChatServer(answer=answer))) == words


def test_a_refused_connection_and_an_unknown_host_are_told():
    assert failure(Rewriter("http://127.0.0.1:1/v1/chat/completions", "writer", KEY, 5)) == (
        "no answer (ConnectionError)"
    )
    assert failure(Rewriter("http://no-such-host.invalid/v1", "writer", KEY, 20)).startswith("no answer ")


def test_a_key_that_no_header_can_hold_is_not_told():
    for key in (f"{KEY}\r\nX-Other: 1", f"{KEY}\u20ac"):
        assert failure(Rewriter("http://127.0.0.1:1/v1/chat/completions", "writer", key, 5)).startswith("no answer (")


def test_a_redirect_is_not_followed_and_the_key_stays(rewriter, web):
    elsewhere = ChatServer()
    place = web(elsewhere)
    moved = ChatServer(answer=lambda handler: respond(handler, b"", 307, Location=f"{place}/v1/chat/completions"))
    assert failure(rewriter(moved)) == "HTTP status 307"
    assert len(moved.asked) == 1 and elsewhere.asked == []


@pytest.mark.parametrize("what", ["hangs", "drips headers", "drips its body"])
def test_an_endpoint_that_does_not_come_to_an_end_costs_the_deadline(rewriter, gate, what):
    over = gate()

    def answer(handler):
        if what == "drips its body":
            respond(handler, b"", Content_Length="1000000")
        while what != "hangs" and not over.wait(0.05):
            handler.wfile.write(b"x" if what == "drips headers" else b" ")
            handler.wfile.flush()
        over.wait()

    asking, started = rewriter(ChatServer(answer=answer), seconds=0.5), time.monotonic()
    words = failure(asking)
    assert 0.4 < time.monotonic() - started < 30
    assert words in ("no answer within 0.5 seconds", "its answer was not fetched in time")


@pytest.mark.parametrize(("seconds", "left", "waited"), [(600, 2, 1), (0.5, 600, 0.5), (600, -1, 0)])
def test_at_most_half_of_the_time_that_is_left_is_waited(rewriter, gate, seconds, left, waited):
    over = gate()
    asking, started = rewriter(ChatServer(answer=lambda handler: over.wait()), seconds=seconds), time.monotonic()
    with pytest.raises(RewriteFailed, match="^no answer"):
        asking.rewrite("a fox", (), seconds_left=left)
    assert 0.8 * waited < time.monotonic() - started < waited + 30


def test_a_stop_is_heard_during_the_call(rewriter, gate):
    asked, over, cancelled = gate(), gate(), threading.Event()
    asking = rewriter(ChatServer(answer=lambda handler: asked.set() or over.wait()), seconds=600)
    threading.Thread(target=lambda: asked.wait() and cancelled.set(), daemon=True).start()
    with pytest.raises(Cancelled):
        asking.rewrite("a fox", (), cancelled)


def test_endpoints_that_hang_hold_no_more_than_their_threads(rewriter, gate, monkeypatch):
    monkeypatch.setattr(module, "rewrite_threads", SideThreads(1))
    asked, over = gate(), gate()
    asking = rewriter(ChatServer(answer=lambda handler: asked.set() or over.wait()), seconds=0.3)
    assert failure(asking) == "no answer within 0.3 seconds"
    assert failure(asking) == "16 answers are still being waited for"
    over.set()
    wait_until(lambda: "16" not in failure(asking))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("http://10.0.0.5:8000/v1/", "http://10.0.0.5:8000/v1/chat/completions"),
        ("http://vllm:8000/v1/chat/completions", "http://vllm:8000/v1/chat/completions"),
    ],
)
def test_the_operator_names_the_base_or_the_whole_address(url, address):
    found = rewriter_from_settings(Settings(QWEN_REWRITE_URL=url, QWEN_REWRITE_MODEL="m", QWEN_REWRITE_KEY=KEY))
    assert (found.address, found.model, found.key, found.seconds) == (address, "m", KEY, 10)
    assert KEY not in repr(found)


def test_settings_that_cannot_be_used_are_refused_by_name():
    assert rewriter_from_settings(Settings()) is None
    with pytest.raises(Misconfigured, match="QWEN_REWRITE_URL is set and QWEN_REWRITE_MODEL is not"):
        rewriter_from_settings(Settings(QWEN_REWRITE_URL="https://api.openai.com/v1"))
