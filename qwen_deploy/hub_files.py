"""The files of RunPod's Hub, written from what they repeat: the worker's settings, the torch pin, the root Dockerfile.

`make hub-files` writes them; a test holds them to it.
"""

import json
import re
import types
from enum import Enum
from pathlib import Path
from typing import cast, get_args

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from qwen_worker.settings import Settings

from .cards import NO_MODEL
from .configuration import DEFAULT_ENV, DEFAULTS
from .environment import cuda_floor, join_members
from .runpod.schemas import JsonObject
from .session import ROOT

# What a driver may be for; newer ones run what was built for older ones.
CUDA_VERSIONS = ("12.6", "12.7", "12.8", "12.9", "13.0", "13.1", "13.2", "13.3")
# Only cards that hold both models in bfloat16: pictures of one seed are then the same on all workers.
POOLS = ("AMPERE_80", "ADA_80_PRO", "HOPPER_141")
# By name: the pools that a preset is for, and what it sets.
PRESETS = {
    "80 GB and more (A100, H100, H200): both models, exact": (POOLS, {"QWEN_PRECISION": "bf16"}),
    "48 GB (L40, L40S, 6000 Ada): both models, fp8": (("ADA_48_PRO",), {"QWEN_PRECISION": "fp8"}),
    "48 GB (A40, A6000): both models, int8": (("AMPERE_48",), {"QWEN_PRECISION": "int8"}),
    "48 GB: text to image alone, exact": (
        ("AMPERE_48", "ADA_48_PRO"), {"QWEN_PRECISION": "bf16", "QWEN_EDIT_MODEL": NO_MODEL}),
    "48 GB: edits alone, exact": (
        ("AMPERE_48", "ADA_48_PRO"), {"QWEN_PRECISION": "bf16", "QWEN_IMAGE_MODEL": NO_MODEL}),
    "24 GB (4090): text to image alone, fp8": (
        ("ADA_24",), {"QWEN_PRECISION": "fp8", "QWEN_EDIT_MODEL": NO_MODEL}),
    "16 and 24 GB: both models, NF4": (("AMPERE_16", "AMPERE_24", "ADA_24"), {"QWEN_PRECISION": "nf4"}),
}  # fmt: skip
# Settings that someone who deploys from the Hub may want to choose, by their names in its form; the first few are
# shown, the others are advanced.
SHOWN = ("QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL", "QWEN_PRECISION", "QWEN_FALLBACK", "QWEN_PRELOAD", "HF_TOKEN")
NAMES = {
    "QWEN_IMAGE_MODEL": "Text-to-image model",
    "QWEN_EDIT_MODEL": "Edit model",
    "QWEN_PRECISION": "Precision",
    "QWEN_FALLBACK": "Stand-ins",
    "QWEN_PRELOAD": "Models loaded at the start",
    "QWEN_SAVINGS": "Exact savings of memory",
    "QWEN_SPEEDUPS": "Speed-ups",
    "QWEN_COMPILED_MB": "Compiled blocks kept (MB)",
    "QWEN_SELF_CHECK": "Self-check of optimisations",
    "QWEN_VRAM_GB": "GPU memory cap (GB)",
    "QWEN_CONCURRENCY": "Jobs held at once",
    "QWEN_BATCH": "Small pictures in one call",
    "QWEN_PROMPT_CACHE_MB": "Prompt cache (MB)",
    "QWEN_LOAD_THREADS": "Threads that read weights",
    "QWEN_PREPARED": "Prepared checkpoints",
    "QWEN_PRESET": "Preset of jobs that do not say",
    "QWEN_IMAGE_FAST_LORA": "Few-step LoRA, text to image",
    "QWEN_EDIT_FAST_LORA": "Few-step LoRA, edits",
    "QWEN_FAST_STEPS": "Steps of the few-step LoRAs",
    "QWEN_LORAS": "LoRAs of every picture (JSON)",
    "QWEN_LORA_MB": "Largest LoRA of a job (MB)",
    "QWEN_LORA_CACHE_GB": "Disk for LoRAs (GB)",
    "QWEN_LORA_SECONDS": "Deadline of a LoRA (s)",
    "QWEN_LOAD_RETRY_SECONDS": "Pause before a load is retried (s)",
    "QWEN_FETCH_SECONDS": "Deadline of an input image (s)",
    "QWEN_JOB_SECONDS": "Limit of a job (s)",
    "QWEN_SHUTDOWN_SECONDS": "Time to end on SIGTERM (s)",
    "QWEN_STUCK_SECONDS": "Time until a stuck worker ends (s)",
    "QWEN_PROGRESS_SECONDS": "Pause between progress messages (s)",
    "STREAM": "Stream the reply",
    "QWEN_RESULT_LIMIT_MB": "Largest reply (MB)",
    "QWEN_DELIVERY": "Delivery of pictures",
    "QWEN_MARK": "Marks in files",
    "QWEN_SAFETY_MODEL": "Safety check: image classifier",
    "QWEN_UNKNOWN_FIELDS": "Unknown fields of jobs",
    "QWEN_UPLOAD_SECONDS": "Deadline of an upload (s)",
    "BUCKET_ENDPOINT_URL": "Bucket: endpoint URL",
    "BUCKET_ACCESS_KEY_ID": "Bucket: access key",
    "BUCKET_SECRET_ACCESS_KEY": "Bucket: secret key",
    "BUCKET_NAME": "Bucket: name",
    "BUCKET_REGION": "Bucket: region",
    "BUCKET_PREFIX": "Bucket: prefix of keys",
    "BUCKET_KEY": "Bucket: form of keys",
    "BUCKET_PUBLIC_URL": "Bucket: public URL",
    "BUCKET_URL_SECONDS": "Bucket: life of URLs (s)",
}
FULL = "an endpoint takes 50 variables, and those of the form are nearly as many: it is added to an endpoint by hand"
# Settings that are left out of the form, and why.
LEFT_OUT = {
    "QWEN_WORKER_VERSION": "the build sets it: any image could pass for another",
    "SERVER_MODE": "runpod is the only mode that takes an endpoint's jobs",
    "QWEN_COMPILED_FOLDER": "below HF_HOME, which an endpoint moves to its volume",
    "QWEN_MODEL_ROOTS": "the image's own folders and the platform's mounts, which no endpoint moves",
    "QWEN_LORA_ROOTS": "the same: a folder of LoRAs on the volume or in the image",
    "QWEN_RESPONSE_SHAPE": FULL,
    "QWEN_C2PA_CERTIFICATE": FULL,
    "QWEN_C2PA_KEY": FULL,
    "QWEN_SAFETY_LABELS": FULL,
    "QWEN_SAFETY_THRESHOLD": FULL,
    "QWEN_REWRITE_URL": FULL,
    "QWEN_REWRITE_MODEL": FULL,
    "QWEN_REWRITE_KEY": FULL,
    "QWEN_REWRITE_SECONDS": FULL,
}
TINY = "/app/models/tiny-qwen-image"
TEST_ENV = {"QWEN_IMAGE_MODEL": f"{TINY}/generate", "QWEN_EDIT_MODEL": f"{TINY}/edit", "QWEN_FALLBACK": "forbid"}


def hub() -> JsonObject:
    """What the Hub shows and asks for: hub.json."""
    fixed = [{"key": key, "value": value} for key, value in DEFAULT_ENV.items()]
    token: JsonObject = {
        "name": "Hugging Face token",
        "type": "string",
        "description": "for gated models",
        "required": False,
    }
    inputs = {key: setting_input(key, Settings.model_fields[key]) for key in NAMES} | {"HF_TOKEN": token}
    return {
        "title": "Qwen-Image",
        "description": "Text to image, image editing, background replacement and inpainting with the 20B Qwen-Image "
        "models: progress, cancellation, results by URL, and an OpenAI-compatible Images API.",
        "type": "serverless",
        "category": "image",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": DEFAULTS["disk"],
            "gpuCount": 1,
            "gpuIds": ",".join(POOLS),
            "allowedCudaVersions": cuda_versions(),
            "presets": [{"name": name, "defaults": env} for name, (_, env) in PRESETS.items()],
            "env": [*fixed, *({"key": key, "input": form | advanced(key)} for key, form in inputs.items())],
        },
    }


def advanced(key: str) -> JsonObject:
    return {} if key in SHOWN else {"advanced": True}


def setting_input(key: str, field: FieldInfo) -> JsonObject:
    """A setting as an input of the Hub's form."""
    form: JsonObject = {"name": NAMES[key], "description": field.description, "required": False}
    kinds = [kind for kind in get_args(field.annotation) if kind is not types.NoneType] or [field.annotation]
    kind = kinds[0]
    if kind is bool:
        form |= {"type": "boolean", "trueValue": "true", "falseValue": "false"}
    elif kind in (int, float):
        form |= {"type": "number"} | limits(field)
    else:
        form |= {"type": "string"}
    if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        form |= {"options": [{"label": member.value, "value": member.value} for member in field.annotation]}
    if field.default is not None and kind is not SecretStr:
        form |= {"default": default(field.default)}
    return form


def limits(field: FieldInfo) -> JsonObject:
    """The least and the largest value of the form. Where a setting must be above 0, the form begins at 1."""
    ends: JsonObject = {}
    for rule in field.metadata:
        if isinstance(rule, Ge):
            ends["min"] = rule.ge
        if isinstance(rule, Gt):
            ends["min"] = 1
        if isinstance(rule, Le):
            ends["max"] = rule.le
    return ends


def default(value: object) -> object:
    """A setting's default as the environment would hold it.

    An empty set is `none`; a tuple becomes JSON.
    """
    if isinstance(value, frozenset):
        return join_members(cast(frozenset[Enum], value)) or "none"
    if isinstance(value, tuple):
        return json.dumps(value)
    return value.value if isinstance(value, Enum) else value


def cuda_versions() -> list[str]:
    return list(CUDA_VERSIONS[CUDA_VERSIONS.index(cuda_floor(ROOT) or "") :])


def tests() -> JsonObject:
    """The Hub's tests: jobs on the tiny checkpoint, since a test ends before the 20B weights are fetched."""
    small = {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 7}
    drawn = {"prompt": "a large red circle in the center, on a blue background", **small}
    return {
        "tests": [
            {"name": "health", "input": {"task": "health"}, "timeout": 300_000},
            {"name": "generate", "input": {"task": "generate", **drawn}, "timeout": 300_000},
            {"name": "openai_images", "timeout": 300_000, "input": {
                "openai_route": "/v1/images/generations",
                "openai_input": {"prompt": drawn["prompt"], "size": "256x256", "num_inference_steps": 4, "seed": 7}}},
        ],
        "config": {
            "gpuTypeId": "NVIDIA GeForce RTX 4090",
            "gpuCount": 1,
            "env": [{"key": key, "value": value} for key, value in TEST_ENV.items()],
            "allowedCudaVersions": cuda_versions(),
        },
    }  # fmt: skip


def dockerfile(text: str) -> str:
    """The root Dockerfile without its part that lays weights into the image.

    The Hub's builds end after 30 minutes, and at 80 GB.
    """
    body = text[text.index("ARG BASE_IMAGE=") :]
    kept = re.sub(r"^# \[weights.*?^# weights\]\n", "", body, flags=re.MULTILINE | re.DOTALL)
    head = "# The worker without weights, for RunPod's Hub: what `make hub-files` leaves of ../Dockerfile.\n"
    return head + re.sub(r"\n{3,}", "\n\n", kept)


def files() -> dict[str, str]:
    """The text of each file, by its path from the root."""
    return {
        ".runpod/hub.json": json.dumps(hub(), indent=2) + "\n",
        ".runpod/tests.json": json.dumps(tests(), indent=2) + "\n",
        ".runpod/Dockerfile": dockerfile((ROOT / "Dockerfile").read_text()),
    }


if __name__ == "__main__":
    for name, text in files().items():
        Path(ROOT / name).write_text(text)
