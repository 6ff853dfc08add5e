"""The files of RunPod's Hub, written from what they repeat: the worker's settings, the torch pin, the root Dockerfile.

`make hub-files REPOSITORY=owner/name` writes them, with the address of the icon in that repository of GitHub. A test
holds the files to it.
"""

import base64
import json
import re
import sys
import types
from enum import Enum
from pathlib import Path
from typing import NamedTuple, cast, get_args

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from qwen_worker.settings import Settings

from .cards import MODEL_SETTINGS
from .configuration import DEFAULT_ENV, DEFAULTS
from .environment import cuda_floor, join_members
from .hub_icon import ICON
from .hub_words import DESCRIPTION, DESCRIPTIONS, LABELS, NAMES
from .proof import PROMPTS, TEST_PICTURE
from .recommended import MODELS, RECOMMENDED_LORAS
from .runpod.schemas import JsonObject
from .session import ROOT

# What a driver may be for; newer ones run what was built for older ones.
CUDA_VERSIONS = ("12.6", "12.7", "12.8", "12.9", "13.0", "13.1", "13.2", "13.3")
# Only cards that hold both models in bfloat16: pictures of one seed are then the same on all workers. The pool whose
# picture is the cheapest and the quickest comes first.
POOLS = ("HOPPER_141", "ADA_80_PRO", "AMPERE_80")
BOTH, GENERATE, EDIT = "generate,edit", "generate", "edit"
FAST = {"QWEN_PRESET": "fast", **RECOMMENDED_LORAS}


class Offer(NamedTuple):
    """One of the Hub's presets: the pools that its name tells people to choose, and what it sets.

    The Hub lets a preset set variables and no cards. A preset whose precision the cards of `POOLS` lack leaves it to
    the worker, so that it also serves where nobody changes the cards.
    """

    pools: tuple[str, ...]
    precision: str  # what the worker computes with on those pools
    env: dict[str, str]


def offer(pools: tuple[str, ...], tasks: str, precision: str, setting: str = "auto", **env: str) -> Offer:
    """Every offer sets the same variables, so that a change of the preset leaves nothing of the one before."""
    models = {MODEL_SETTINGS[task]: model for task, model in MODELS.items()}
    common = {**models, "QWEN_TASKS": tasks, "QWEN_PRECISION": setting, "QWEN_PRESET": "quality"}
    return Offer(pools, precision, common | env)


PRESETS = {
    "Best pictures: 80 GB cards (H100, H200, A100)": offer(POOLS, BOTH, "bf16", "bf16"),
    "Cheapest and fastest picture: 80 GB cards, few steps with Lightning": offer(POOLS, BOTH, "bf16", **FAST),
    "Text to image alone, exact: 48 GB cards (L40S, L40, 6000 Ada, A40, A6000)": offer(
        ("ADA_48_PRO", "AMPERE_48"), GENERATE, "bf16", "bf16"),
    "Edits alone, exact: 48 GB cards (L40S, L40, 6000 Ada, A40, A6000)": offer(
        ("ADA_48_PRO", "AMPERE_48"), EDIT, "bf16", "bf16"),
    "Both, fp8: 48 GB cards (L40S, L40, 6000 Ada)": offer(("ADA_48_PRO",), BOTH, "fp8"),
    "Both, int8: 48 GB cards (A40, A6000)": offer(("AMPERE_48",), BOTH, "int8"),
    "Text to image alone, fp8: RTX 4090": offer(("ADA_24",), GENERATE, "fp8"),
    "Both, NF4, slow: 16 and 24 GB cards": offer(("AMPERE_16", "AMPERE_24", "ADA_24"), BOTH, "nf4", "nf4"),
}  # fmt: skip
FULL = "an endpoint takes 50 variables, and those of the form are nearly as many: it is added to an endpoint by hand"
# Settings that are left out of the form, and why.
LEFT_OUT = {
    "QWEN_WORKER_VERSION": "the build sets it: any image could pass for another",
    "SERVER_MODE": "runpod is the only mode that takes an endpoint's jobs",
    "QWEN_COMPILED_FOLDER": "below HF_HOME, which an endpoint moves to its volume",
    "QWEN_MODEL_ROOTS": "the image's own folders and the platform's mounts, which no endpoint moves",
    "QWEN_LORA_ROOTS": "the same: a folder of LoRAs on the volume or in the image",
    "QWEN_IMAGE_TRANSFORMER": FULL,
    "QWEN_EDIT_TRANSFORMER": FULL,
    "QWEN_CONTROLNET": FULL,
    "QWEN_GPUS": FULL,
    "QWEN_STUCK_SECONDS": FULL,
    "QWEN_LAYERED_MODEL": FULL,
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
HUB_MODELS = ("QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL", "QWEN_SAFETY_MODEL")  # chosen among the models of Hugging Face
RAW = "https://raw.githubusercontent.com"
TINY = "/app/models/tiny-qwen-image"
TEST_ENV = {"QWEN_IMAGE_MODEL": f"{TINY}/generate", "QWEN_EDIT_MODEL": f"{TINY}/edit", "QWEN_FALLBACK": "forbid"}


def hub(repository: str | None) -> JsonObject:
    """What the Hub shows and asks for: hub.json. Without the `repository` on GitHub it has no icon."""
    fixed = [{"key": key, "value": value} for key, value in DEFAULT_ENV.items()]
    token = {"name": "Hugging Face token", "type": "string", "description": DESCRIPTIONS["HF_TOKEN"], "required": False}
    inputs = {key: setting_input(key, Settings.model_fields[key]) for key in NAMES} | {"HF_TOKEN": token}
    icon = {"iconUrl": f"{RAW}/{repository}/HEAD/{ICON.relative_to(ROOT)}"} if repository else {}
    return {
        "title": "Qwen-Image",
        "description": DESCRIPTION,
        "type": "serverless",
        "category": "image",
        **icon,
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": DEFAULTS["disk"],
            "gpuCount": 1,
            "gpuIds": ",".join(POOLS),
            "allowedCudaVersions": cuda_versions(),
            "presets": [{"name": name, "defaults": offer.env} for name, offer in PRESETS.items()],
            "env": [*fixed, *({"key": key, "input": form | advanced(key)} for key, form in inputs.items())],
        },
    }


def advanced(key: str) -> JsonObject:
    return {} if key in DESCRIPTIONS else {"advanced": True}


def setting_input(key: str, field: FieldInfo) -> JsonObject:
    """A setting as an input of the Hub's form."""
    form: JsonObject = {
        "name": NAMES[key], "description": DESCRIPTIONS.get(key, field.description), "required": False,
    }  # fmt: skip
    kinds = [kind for kind in get_args(field.annotation) if kind is not types.NoneType] or [field.annotation]
    kind = kinds[0]
    if kind is bool:
        form |= {"type": "boolean", "trueValue": "true", "falseValue": "false"}
    elif kind in (int, float):
        form |= {"type": "number"} | limits(field)
    else:
        form |= {"type": "huggingface" if key in HUB_MODELS else "string"}
    labels = LABELS.get(key, {})
    if not labels and isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        labels = {member.value: member.value for member in field.annotation}
    if labels:
        form |= {"options": [{"label": label, "value": value} for value, label in labels.items()]}
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
    small = {"width": 256, "height": 256, "num_inference_steps": 4}
    drawn, edited = ({**PROMPTS[task], **small} for task in ("generate", "edit"))
    picture = base64.b64encode(TEST_PICTURE.read_bytes()).decode()
    return {
        "tests": [
            {"name": "health", "input": {"task": "health"}, "timeout": 300_000},
            {"name": "generate", "input": {"task": "generate", **drawn}, "timeout": 300_000},
            {"name": "edit", "input": {"task": "edit", **edited, "image": picture}, "timeout": 300_000},
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


def present_repository() -> str | None:
    """The repository on GitHub that the icon's address in hub.json names."""
    found = re.search(rf'"iconUrl": "{RAW}/([^/]+/[^/]+)/', (ROOT / ".runpod/hub.json").read_text())
    return found[1] if found else None


def files(repository: str | None = None) -> dict[str, str]:
    """The text of each file, by its path from the root. Without a `repository` on GitHub, the present one stays."""
    return {
        ".runpod/hub.json": json.dumps(hub(repository or present_repository()), indent=2) + "\n",
        ".runpod/tests.json": json.dumps(tests(), indent=2) + "\n",
        ".runpod/Dockerfile": dockerfile((ROOT / "Dockerfile").read_text()),
    }


if __name__ == "__main__":
    for name, text in files(*sys.argv[1:]).items():
        Path(ROOT / name).write_text(text)
