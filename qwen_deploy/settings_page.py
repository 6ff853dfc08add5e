"""docs/settings.md, written from the worker's settings: each with its default, its limits and its own description.

`python -m qwen_deploy.settings_page` writes it; a test holds it to the code. Knows nothing of what the settings cause.
"""

import re
from enum import Enum
from typing import cast, get_args

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from qwen_worker.settings import Settings

from .environment import join_members
from .session import ROOT

PAGE = ROOT / "docs/settings.md"
HEAD = """\
# Settings

Each setting is an environment variable of the worker. This page is written from the code by
`python -m qwen_deploy.settings_page`; the words are those of `qwen_worker/settings.py`,
`model_settings.py`, `preset_settings.py`, `delivery_settings.py` and `check_settings.py`.

An empty variable counts as absent. A value that cannot be used ends the start of the worker with the variable's name. A
variable that begins with `QWEN_` and is no setting is named in the log, with the setting that it resembles.
"""
# By section: where it is explained, and its settings in order.
SECTIONS = {
    "Models and memory": (
        "[Models and weights](operating.md#models-and-weights), [Single files](models.md#single-files), "
        "[Memory](operating.md#memory)",
        ["QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL", "QWEN_LAYERED_MODEL", "QWEN_IMAGE_TRANSFORMER", "QWEN_EDIT_TRANSFORMER",
         "QWEN_CONTROLNET", "QWEN_TASKS", "QWEN_MODEL_ROOTS", "QWEN_PRECISION", "QWEN_SAVINGS",
         "QWEN_VRAM_GB", "QWEN_GPUS"],
    ),
    "Loading": (
        "[Loading](operating.md#loading), [When a model cannot be loaded](operating.md#when-a-model-cannot-be-loaded)",
        ["QWEN_FALLBACK", "QWEN_PRELOAD", "QWEN_PREPARED", "QWEN_LOAD_THREADS", "QWEN_LOAD_RETRY_SECONDS"],
    ),
    "Speed": (
        "[Speed](speed.md)",
        ["QWEN_SPEEDUPS", "QWEN_COMPILED_FOLDER", "QWEN_COMPILED_MB", "QWEN_SELF_CHECK", "QWEN_PROMPT_CACHE_MB"],
    ),
    "Presets and LoRAs": (
        "[Presets and LoRAs of the endpoint](operating.md#presets-and-loras-of-the-endpoint)",
        ["QWEN_PRESET", "QWEN_IMAGE_FAST_LORA", "QWEN_EDIT_FAST_LORA", "QWEN_FAST_STEPS", "QWEN_LORAS",
         "QWEN_LORA_ROOTS", "QWEN_LORA_MB", "QWEN_LORA_CACHE_GB", "QWEN_LORA_SECONDS"],
    ),
    "Jobs": (
        "[Stops and limits](operating.md#stops-and-limits), [Several jobs at once](operating.md#several-jobs-at-once)",
        ["SERVER_MODE", "STREAM", "QWEN_UNKNOWN_FIELDS", "QWEN_CONCURRENCY", "QWEN_BATCH", "QWEN_JOB_SECONDS",
         "QWEN_FETCH_SECONDS",
         "QWEN_PROGRESS_SECONDS", "QWEN_SHUTDOWN_SECONDS", "QWEN_STUCK_SECONDS", "QWEN_WORKER_VERSION"],
    ),
    "Results": (
        "[Delivery](jobs.md#delivery), [Shapes of replies](jobs.md#shapes-of-replies), "
        "[Marks in files](operating.md#marks-in-files), [The bucket](operating.md#the-bucket)",
        ["QWEN_MARK", "QWEN_C2PA_CERTIFICATE", "QWEN_C2PA_KEY", "QWEN_RESPONSE_SHAPE", "QWEN_DELIVERY",
         "QWEN_RESULT_LIMIT_MB", "QWEN_UPLOAD_SECONDS", "BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID",
         "BUCKET_SECRET_ACCESS_KEY", "BUCKET_NAME", "BUCKET_REGION", "BUCKET_PREFIX", "BUCKET_KEY", "BUCKET_PUBLIC_URL",
         "BUCKET_URL_SECONDS"],
    ),
    "Checks": (
        "[The safety check](operating.md#the-safety-check), [Rewriting prompts](operating.md#rewriting-prompts)",
        ["QWEN_SAFETY_MODEL", "QWEN_SAFETY_LABELS", "QWEN_SAFETY_THRESHOLD", "QWEN_REWRITE_URL", "QWEN_REWRITE_MODEL",
         "QWEN_REWRITE_KEY", "QWEN_REWRITE_SECONDS"],
    ),
}  # fmt: skip
TAIL = """
## Variables of others

The worker's libraries read these themselves.

| variable | read by | what it is for |
|---|---|---|
| `HF_HOME` | huggingface_hub | The folder of downloads. Fetched LoRAs and compiled blocks lie below it too. |
| `HF_TOKEN` | huggingface_hub | The token for gated models. Jobs can name LoRAs that it can read. |
| `HF_ENDPOINT` | huggingface_hub | The address of a mirror of the hub. |
| `TORCH_HOME` | torch | The folder of torch's own downloads. |
| `TORCHINDUCTOR_CACHE_DIR` | torch | The folder in which torch keeps what it compiles. |
| `TORCHINDUCTOR_COMPILE_THREADS` | torch | In how many processes torch compiles kernels. Without it, at most 4. |
| `PYTORCH_ALLOC_CONF` | torch | The settings of torch's allocators. The worker adds two that are not set. |
| `RUNPOD_DEBUG_LEVEL` | RunPod's SDK | The least level of lines in the log. Without it the worker sets `INFO`. |
| `RUNPOD_INIT_TIMEOUT` | RunPod | How many seconds a worker may take to start. |
| `RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS` | RunPod's SDK | `true` lets URLs of jobs lead to private addresses. |
"""


def page() -> str:
    """The whole page. Raises `ValueError` where a setting has no section, or two."""
    listed = [name for _, names in SECTIONS.values() for name in names]
    if sorted(listed) != sorted(Settings.model_fields):
        wrong = set(listed) ^ set(Settings.model_fields) or {name for name in listed if listed.count(name) > 1}
        raise ValueError(f"the sections of the page must hold every setting once; see {', '.join(sorted(wrong))}")
    parts = [HEAD]
    for title, (explained, names) in SECTIONS.items():
        rows = "\n".join(row(name, Settings.model_fields[name]) for name in names)
        table = f"| variable | default | values | what it is for |\n|---|---|---|---|\n{rows}\n"
        parts.append(f"\n## {title}\n\nExplained in {explained}.\n\n{table}")
    return "".join(parts) + TAIL


def row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {describe_default(name, field.default)} | {describe_values(field)} | {mark_code(field)} |"


def describe_default(name: str, value: object) -> str:
    """The default as the environment would hold it."""
    if isinstance(value, frozenset):
        value = join_members(cast(frozenset[Enum], value)) or None
    elif isinstance(value, tuple):
        value = ":".join(map(str, cast(tuple[object, ...], value))) or None
    elif isinstance(value, Enum):
        value = value.value
    elif isinstance(value, bool):
        value = str(value).lower()
    elif name == "QWEN_SPEEDUPS":  # absent means a choice, not nothing
        value = "auto"
    return "none" if value in (None, "") else f"`{value}`"


def describe_values(field: FieldInfo) -> str:
    """The values that a setting takes: those of its kind, within its limits."""
    if NoDecode in field.metadata:  # its own validator splits it
        return "a list"
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] or [field.annotation]
    kind = kinds[0]
    if issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    if kind is bool:
        return "`true`, `false`"
    if kind not in (int, float):
        return "text"
    return f"{'a whole number' if kind is int else 'a number'}{describe_limits(field)}"


def describe_limits(field: FieldInfo) -> str:
    words = ""
    for rule in field.metadata:
        if isinstance(rule, Gt):
            words += f" above {rule.gt}"
        if isinstance(rule, Ge):
            words += f" from {rule.ge}"
        if isinstance(rule, Le):
            words += f" to {rule.le}"
    return words


def mark_code(field: FieldInfo) -> str:
    """A description in Markdown: names of variables, values that it explains, parts of a key and JSON stand as code."""
    pattern = r"\[\{.*?\}\]|\{\w+\}|\b[A-Z]+(?:_[A-Z0-9]+)+\b"
    if isinstance(field.default, Enum):
        pattern += "|" + "|".join(rf"\b{one.value}(?=:)" for one in type(field.default))
    return re.sub(pattern, r"`\g<0>`", field.description or "")


if __name__ == "__main__":
    PAGE.write_text(page())
