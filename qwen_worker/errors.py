"""What a caller is told when a job cannot be done: a stable code and one sentence.

Every code that a reply can carry is in `CODES`. A `LoadError` does not end a job by itself: the handler decides whether
it becomes a stand-in or `model_unavailable`. A URL loses its secrets in every sentence here, whoever quotes it. Knows
nothing of where errors arise.
"""

import re
from enum import StrEnum
from typing import Any

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, which torch raises as `AcceleratorError` for host memory
MAX_WORDS = 200  # characters of an exception's own words that a reply, `health` and a note keep
# A path of a disk, in quotes or bare: what stands after its last slash is left.
PATH = re.compile(r"(?<![\w:/])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+~-]+)*[/\\](?=[\w.@+~-])")
# The rest of a URL after its scheme, or of one whose host requests names apart: credentials, also with a slash in the
# password, which makes the URL invalid; the place; a query or fragment. All parts end at the same characters, so that
# the search takes one pass through any text.
URL = re.compile(
    r"""(?:(?<=://)(?:[^\s/?#"<>]*@|[^\s/?#@:"<>]*:(?!\d+[/?#])[^\s"<>]*@)?|(?<=with url: ))"""
    r"""(?P<place>[^\s?#"<>]*)(?:[?#][^\s"<>]*)?"""
)

CODES = {
    "invalid_input": "a field is missing, unknown, of the wrong type or outside its limits",
    "image_unreadable": "an input image could not be decoded",
    "image_fetch_failed": "an input image could not be fetched from its URL",
    "lora_fetch_failed": "a LoRA could not be fetched from the hub or its URL",
    "deadline_exceeded": "the job's time ran out, or clearly would",
    "out_of_memory": "the job is too large for the memory that the loaded model leaves",
    "content_rejected": "the endpoint's safety check has rejected an input picture or a drawn one",
    "result_too_large": "the reply would exceed what the platform delivers",
    "upload_failed": "the bucket did not take the result, and it is too large to be sent in the reply",
    "model_unavailable": "the model, a LoRA of the endpoint or a check could not be loaded, and nothing replaces it",
    "internal": "a fault of the worker; the log holds it under the job id",
}


class JobError(Exception):
    """Ends a job with a failure that its caller may read: no path or traceback belongs in `sentence`.

    Raises `KeyError` for a code that is not in `CODES`.
    """

    def __init__(self, code: str, sentence: str, refresh_worker: bool = False):
        if code not in CODES:
            raise KeyError(f"{code} is not one of {', '.join(CODES)}")
        sentence = hide_secrets(sentence)
        super().__init__(f"{code}: {sentence}")
        self.code, self.sentence = code, sentence
        self.refresh_worker = refresh_worker

    def reply(self) -> dict[str, Any]:
        """The reply for this failure; the SDK turns a truthy `error` into the state FAILED.

        `refresh_worker` asks the platform for a fresh worker after this job.
        """
        return {"error": str(self), "success": False} | ({"refresh_worker": True} if self.refresh_worker else {})


class BeyondSchema(StrEnum):
    """What the JSON schema of a job cannot say: the rules whose breach the schema accepts and the worker refuses."""

    TWICE = "Two names of one field have different values, or two fields are given that may not be sent together."
    TOGETHER = "Fields need or exclude each other, such as `width` without `height` in an edit."
    TEXT_NUMBER = "A number or a size that is sent as text is outside its limits."
    LARGE_FLOAT = "A whole number above 2^53 - 1 is written as a float, such as `1e19`, and may have been rounded."
    NOT_JSON = "A value does not exist in JSON (NaN or infinity), or a text is not Unicode."
    WORDS = "A prompt is empty, contains a special token, or has too many tokens."
    LORA_PATH = "The `path` of a LoRA does not have one of the forms that it may have."
    COUNT = "The input or `openai_input` has too many fields. Those in `parameters` and `extra_body` count too."
    ENDPOINT = (
        "The endpoint or its checkpoint does not serve the task, the preset, the size, LoRAs, or so many pictures."
    )


class InvalidInput(JobError):
    """The caller's mistake in a field: the sentence names the field, the rule and the value.

    `beyond_schema`: the rules that are broken; empty where the schema of a job refuses the input too.
    """

    def __init__(self, sentence: str, *beyond_schema: BeyondSchema):
        super().__init__("invalid_input", sentence)
        self.beyond_schema = beyond_schema


class LoadError(Exception):
    """A model cannot be loaded, for a reason that a caller may read. `transient`: a later try may succeed."""

    def __init__(self, reason: str, transient: bool = False):
        self.reason = hide_secrets(reason)
        super().__init__(self.reason)
        self.transient = transient


class CudaSpoiledError(Exception):
    """CUDA's context has failed for good: every later call in this process fails too, and a fresh process is needed.

    `refresh_worker`: whether a fresh worker would do anything otherwise than this one.
    """

    def __init__(self, reason: str, refresh_worker: bool = True):
        super().__init__(reason)
        self.reason, self.refresh_worker = reason, refresh_worker


class Cancelled(Exception):
    """The platform has stopped the job; raised where the job next looks, in the drawing at the next step."""


def hide_secrets(text: str) -> str:
    """The text, in which each URL lacks its credentials, and its query and fragment, which may be a signature.

    A URL that will be cut short goes through here first: of half a URL nobody can tell where the credentials end.
    """
    return URL.sub(r"\g<place>", text)


def describe_error(error: BaseException) -> str:
    """The exception's class and the first line of its words, without the folders of paths or the secrets of URLs."""
    words = PATH.sub("", hide_secrets(str(error).strip().partition("\n")[0]))
    return f"{type(error).__name__}: {words}"[:MAX_WORDS] if words else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: of the card, or of the host where it is pinned for the card."""
    if isinstance(error, MemoryError):
        return True
    return type(error).__name__ == "OutOfMemoryError" or getattr(error, "error_code", None) == OUT_OF_MEMORY
