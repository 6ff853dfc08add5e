"""An OpenAI-compatible chat endpoint on loopback, whose answers a test chooses. Knows nothing of the worker."""

import json

from ..conftest import respond


class ChatServer:
    """Give the object to `web` or `serve`. `answer(handler)` writes one response; by default `text` is the answer."""

    def __init__(self, text="in other words", answer=None):
        self.text, self.answer = text, answer
        self.asked = []  # (path, headers, body) of each request

    def __call__(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.asked.append((handler.path, dict(handler.headers), json.loads(body) if body else None))
        if self.answer:
            return self.answer(handler)
        send(handler, completion(self.text))

    @property
    def messages(self):
        """Of the last request: the system's text and the user's content."""
        system, user = self.asked[-1][2]["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        return system["content"], user["content"]


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def send(handler, value, status=200):
    respond(handler, json.dumps(value).encode(), status, Content_Type="application/json")
