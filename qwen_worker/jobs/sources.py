"""What a job's text may name: a URL, and as the path of a LoRA also a file on this worker or on the hub. Pure.

Knows nothing of how files are fetched or what is in them.
"""

import re
from dataclasses import dataclass

MAX_CHARACTERS = 2048  # of a LoRA's path
MAX_NAME_BYTES = 255  # of a file's or a folder's name, on any disk
SUFFIX = ".safetensors"
PEFT_NAME = "adapter_model.safetensors"  # peft names so what `adapter_config.json` beside it belongs to
# diffusers' trainers, and peft, name so the LoRA beside their checkpoints.
STANDARD_NAMES = ("pytorch_lora_weights.safetensors", PEFT_NAME)
RULE = (
    "ORG/NAME (a hub repository), ORG/NAME/FILE.safetensors (a file in a hub repository), an http(s) URL, or the name "
    "of a .safetensors file in one of the endpoint's folders of LoRAs; @REVISION may follow NAME"
)
HUB_PATH = re.compile(
    r"(?P<hub_id>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>\w[\w.-]*))?(/(?P<file>[^@]+\.safetensors))?", re.ASCII
)


@dataclass(frozen=True)
class HubFile:
    """A LoRA on the hub. `revision` may be empty for the main branch, `file` for the repository's only LoRA."""

    hub_id: str
    revision: str
    file: str


def is_url(text: str) -> bool:
    """Whether the text names a scheme, which base64 never does; a data URI is no URL here."""
    return "://" in text[:40] and not text[:5].lower() == "data:"


def hub_file(text: str) -> HubFile | None:
    """The hub's file that the text names, None where the text cannot name one."""
    match = HUB_PATH.fullmatch(text)
    # "ORG/NAME.safetensors" names a file on this worker: no repository has a file's suffix.
    if not match or (text.endswith(SUFFIX) and not match["file"]):
        return None
    parts = (match["file"] or "").split("/")
    if any(part in (".", "..") for part in parts) or ("" in parts and match["file"]):
        return None
    if max(len(name.encode()) for name in (match["revision"] or "", *parts)) > MAX_NAME_BYTES:
        return None
    if not is_repository(match["hub_id"]):
        return None
    return HubFile(match["hub_id"], match["revision"] or "", match["file"] or "")


def is_repository(hub_id: str) -> bool:
    """Whether the hub's own rules allow the name."""
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
