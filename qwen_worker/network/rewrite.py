"""A prompt in other words, by a language model behind the OpenAI-compatible chat endpoint that the operator names.

The endpoint's address is the operator's own, and may be private as their bucket's may. Redirects are not followed: they
would take the prompt, the pictures and the key elsewhere. What comes back is a stranger's text, which whoever draws it
checks as it checks a job's. Knows nothing of jobs.
"""

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import JobError
from ..settings import Misconfigured, Settings
from .fetch import USER_AGENT, FetchTarget, read_capped
from .side_threads import Busy, Late, SideThreads

if TYPE_CHECKING:
    from requests import PreparedRequest

MAX_REWRITES = 16
rewrite_threads = SideThreads(MAX_REWRITES)
# The threads on which jobs wait for an answer. One more than can wait: it tells all others at once that they are too
# many, so that no job queues for a thread.
waiting_threads = ThreadPoolExecutor(MAX_REWRITES + 1, thread_name_prefix="rewrite")
SHARE = 0.5  # of the time that a job has left: the other half is for drawing the caller's own words
ANSWER = FetchTarget("its answer", max_bytes=1_000_000)
# Around what a reasoning model may put before its answer. Where the chat's template has the first, only the last comes.
THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"

DRAW_INSTRUCTIONS = (
    "You prepare prompts for a model that draws pictures from text. Rewrite the user's prompt as a description of the "
    "finished picture, in at most 150 words. Keep every subject, number, colour, name and style that the prompt gives. "
    "Text that is to stand in the picture stays word for word, in quotation marks. Where the prompt leaves open the "
    "setting, the composition, the light or the materials, choose what fits. Write in the language of the prompt. "
    "Answer with the description alone."
)
EDIT_INSTRUCTIONS = (
    "You prepare instructions for a model that edits pictures. The user sends one or more pictures and says what is to "
    "be changed. Rewrite that as an instruction which can be followed to the letter, in at most 100 words: name what "
    "changes by its look and its place in the picture, what it becomes, and what stays as it is. Add no change that "
    "the user does not ask for. Text that is to stand in the picture stays word for word, in quotation marks. Write in "
    "the language of the user. Answer with the instruction alone."
)


class RewriteFailed(Exception):
    """A prompt was not rewritten; the message goes on after "the endpoint that rewrites prompts failed: "."""


@dataclass(frozen=True)
class Rewriter:
    """`address`: of the endpoint's chat completions. `seconds`: that one prompt may take in all.

    `rewrite` is for `waiting_threads`: an endpoint that hangs then keeps no other work waiting.
    """

    address: str
    model: str
    key: str = field(repr=False)
    seconds: float

    def rewrite(
        self,
        text: str,
        pictures: Sequence[str],
        cancelled: threading.Event | None = None,
        seconds_left: float | None = None,
    ) -> str:
        """The text in other words; with pictures, which are data URLs, as an instruction to edit them.

        `seconds_left`: until the job's limit, of which at most `SHARE` is waited; None for a job without a limit.
        Raises `RewriteFailed`, in which neither the address nor the key nor a word of the answer stands, or `Cancelled`
        within a moment once `cancelled` is set.
        """
        seconds = self.seconds if seconds_left is None else min(self.seconds, SHARE * max(0.0, seconds_left))
        deadline = time.monotonic() + seconds
        body = chat(self.model, text, pictures)
        try:
            return rewrite_threads.run_within(seconds, lambda: self.ask(body, deadline), cancelled)
        except Late:
            raise RewriteFailed(f"no answer within {round(seconds, 2):g} seconds") from None
        except Busy:
            raise RewriteFailed(f"{MAX_REWRITES} answers are still being waited for") from None

    def ask(self, body: dict[str, Any], deadline: float) -> str:
        """The text of the endpoint's answer. `deadline`: of `time.monotonic()`."""
        import requests
        from urllib3.exceptions import HTTPError

        answer = bytearray()
        try:
            with requests.post(
                self.address,
                json=body,
                headers={"User-Agent": USER_AGENT},
                auth=self.authorize,
                # The caller stops waiting at the deadline; the socket is closed a little later, and says nothing more.
                timeout=max(0.1, deadline - time.monotonic()) + 1,
                stream=True,
                allow_redirects=False,
            ) as response:
                if response.status_code != 200:
                    raise RewriteFailed(f"HTTP status {response.status_code}")
                read_capped(response, ANSWER, deadline, answer.extend)
        except JobError as error:  # of `read_capped`
            raise RewriteFailed(error.sentence) from None
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise RewriteFailed(f"no answer ({type(error).__name__})") from None
        return text_of(bytes(answer))

    def authorize(self, request: "PreparedRequest") -> "PreparedRequest":
        """Give the request the key. Without such a function, requests would look for another one in ~/.netrc."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def rewriter_from_settings(settings: Settings) -> Rewriter | None:
    """The operator's endpoint, None where none is set. Raises `Misconfigured` naming the variable that is missing."""
    if settings.QWEN_REWRITE_URL is None:
        return None
    if settings.QWEN_REWRITE_MODEL is None:
        raise Misconfigured("QWEN_REWRITE_URL is set and QWEN_REWRITE_MODEL is not")
    base = settings.QWEN_REWRITE_URL.rstrip("/").removesuffix("/chat/completions")
    key = settings.QWEN_REWRITE_KEY.get_secret_value() if settings.QWEN_REWRITE_KEY else ""
    return Rewriter(f"{base}/chat/completions", settings.QWEN_REWRITE_MODEL, key, settings.QWEN_REWRITE_SECONDS)


def chat(model: str, text: str, pictures: Sequence[str]) -> dict[str, Any]:
    """The body of a request for a chat completion. It has only the fields that all such endpoints take."""
    content: str | list[dict[str, Any]] = text
    if pictures:
        content = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        content.append({"type": "text", "text": text})
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": EDIT_INSTRUCTIONS if pictures else DRAW_INSTRUCTIONS},
            {"role": "user", "content": content},
        ],
    }


def text_of(answer: bytes) -> str:
    """The text in a chat completion, without a reasoning model's thoughts. Raises `RewriteFailed`."""
    try:
        choice: Any = json.loads(answer)["choices"][0]
        text, end = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise RewriteFailed("its answer is no chat completion") from None
    if end == "length":
        raise RewriteFailed("its answer was cut short")
    if end == "content_filter":
        raise RewriteFailed("its answer was withheld by a content filter")
    if not isinstance(text, str | None):
        raise RewriteFailed("its answer is no chat completion")
    text = (text or "").rpartition(THOUGHTS_END)[2].strip()
    if text.startswith(THOUGHTS_BEGIN):
        raise RewriteFailed("its answer is an unfinished thought")
    if not text:
        raise RewriteFailed("its answer is empty")
    return text
