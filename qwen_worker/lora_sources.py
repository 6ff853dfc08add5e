"""What the path of a LoRA names: a file here, one of the hub's, or a URL. Pure but for a look at the disk.

Knows nothing of how files come here (`lora_store.py`) or what is in them (`lora_file.py`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .fetch import is_url

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


def below(roots: Iterable[Path], text: str) -> Path | None:
    """The file of that name below one of the roots, also by its absolute path; links must stay below too."""
    for root in roots:
        try:
            file = (root / text).resolve()
            if file.is_relative_to(root.resolve()) and file.is_file():
                return file
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            continue
    return None


def only_lora(names: Iterable[str]) -> str | None:
    """Of a repository's or a folder's files the one that is meant where none is named."""
    loras = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    return loras[0] if len(loras) == 1 else STANDARD_NAME if STANDARD_NAME in loras else None
