"""What a job's text may name: a URL, and as the path of a LoRA also a file here or one of the hub's. Pure.

Knows nothing of how files come here or what is in them.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

MAX_CHARACTERS = 2048
NAME_BYTES = 255  # of a file's or a folder's name, on any disk
SUFFIX = ".safetensors"
STANDARD_NAME = "pytorch_lora_weights.safetensors"  # of diffusers' trainers, beside checkpoints of the training
RULE = (
    "ORG/NAME or ORG/NAME/FILE.safetensors of the hub, perhaps ORG/NAME@REVISION, an http(s) URL, or a .safetensors "
    "file in the endpoint's folder of LoRAs"
)
HUB_PATH = re.compile(
    r"(?P<hub_id>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>\w[\w.-]*))?(/(?P<file>[^@]+\.safetensors))?", re.ASCII
)


@dataclass(frozen=True)
class HubFile:
    """`revision` and `file` may be empty: the main branch, and the only LoRA of the repository."""

    hub_id: str
    revision: str
    file: str


def is_url(text: str) -> bool:
    """Whether the text names a scheme, as base64 never does."""
    return "://" in text[:40] and not text[:5].lower() == "data:"


def without_secrets(path: str) -> str:
    """A LoRA's path; of a URL neither credentials nor the query, which may be a signature."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def hub_file(text: str) -> HubFile | None:
    """What the text names on the hub, if it can."""
    found = HUB_PATH.fullmatch(text)
    # A name of two parts that ends as a file does is one: no repository is called so.
    if not found or (text.endswith(SUFFIX) and not found["file"]):
        return None
    parts = (found["file"] or "").split("/")
    if any(part in (".", "..") for part in parts) or ("" in parts and found["file"]):
        return None
    if max(map(len, map(str.encode, (found["revision"] or "", *parts)))) > NAME_BYTES or not is_repository(
        found["hub_id"]
    ):
        return None
    return HubFile(found["hub_id"], found["revision"] or "", found["file"] or "")


def is_repository(hub_id: str) -> bool:
    """By the hub's own rules."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        return False
    return True


def is_source(text: str) -> bool:
    """Whether the text can name a LoRA at all."""
    if not text.isprintable() or not 0 < len(text) <= MAX_CHARACTERS:
        return False
    return is_url(text) or text.endswith(SUFFIX) or hub_file(text) is not None
