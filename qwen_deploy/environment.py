"""The environment of the worker as an endpoint holds it: checked by the worker's own settings before it is sent.

Knows nothing of the operator's environment but the variables that `--env NAME` copies.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from qwen_worker.settings import Settings

from .errors import UsageError

# Whose values may be shown: all others may be secrets.
PUBLIC = re.compile(
    r"QWEN_(?!.*(KEY|TOKEN|SECRET))\w+|SERVER_MODE|HF_HOME|TORCH_HOME|RUNPOD_(INIT_TIMEOUT|DEBUG_LEVEL)"
)
CUDA_TAG = re.compile(r"\bcu(\d{2})(\d)\b")
# The CUDA that PyPI's own wheels of a torch release bring; a +cuNNN or a whl/cuNNN index beside the pin says otherwise.
PYPI_CUDA = {"2.14": "13.0"}


class EndpointSettings(Settings):
    """The worker's settings from one mapping alone: not from the operator's shell."""

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        return (init_settings,)


def parse_assignments(texts: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` for the value of `own`: a secret then stays out of the process list."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--env must be NAME=VALUE or NAME, not {name!r}.")
        if not equals and name not in own:
            raise UsageError(f"--env {name} copies a variable of this shell, where {name} is not set.")
        if name == "RUNPOD_API_KEY":
            raise UsageError(
                "--env RUNPOD_API_KEY: the worker needs no API key, and an endpoint's environment is no safe."
            )
        if name == "QWEN_WORKER_VERSION":
            raise UsageError("--env QWEN_WORKER_VERSION would let any image pass for the new one: the build sets it.")
        found[name] = value if equals else own[name]
    return found


def worker_settings(env: Mapping[str, str]) -> Settings:
    """What the worker will make of the environment. Raises `UsageError` naming the variable that it would refuse."""
    known = {name: value for name, value in env.items() if name in Settings.model_fields and value}
    try:
        return EndpointSettings(**known)
    except ValidationError as error:
        problems = "; ".join(describe_problem(one) for one in error.errors())
        raise UsageError(f"The worker would not start with this environment. {problems}.") from None


def describe_problem(error: Mapping) -> str:
    """The variable, the rule and, where it may be shown, the value. A rule between variables has no one value."""
    if not error["loc"]:
        return str(error["msg"])
    name = str(error["loc"][0])
    return f"{name}: {error['msg']}, not {mask_secret(name, str(error['input']))}"


def mask_secret(name: str, value: str | None) -> str:
    """The value for the operator's eyes: hidden where it may be a secret, as the address of a LoRA may be signed."""
    if value is None:
        return "(none)"
    return value if PUBLIC.fullmatch(name) and "://" not in value else "***"


def cuda_floor(root: Path, build_args: Sequence[str] = ()) -> str | None:
    """The CUDA version that the image's torch is built for, from its pin or the build argument in its place: the
    least that a host's driver must serve.

    None where the pin does not say and its release is not known here.
    """
    lines = [line for name in ("requirements.txt", "Dockerfile") for line in read_lines(root / name)]
    asked = [argument for argument in build_args if argument.startswith("TORCH_INDEX=")]
    for text in asked or lines:
        if "torch" in text and (tag := CUDA_TAG.search(text)):
            return f"{int(tag.group(1))}.{tag.group(2)}"
    pins = (re.match(r"torch==(\d+\.\d+)", text) for text in lines)
    return next((PYPI_CUDA.get(pin.group(1)) for pin in pins if pin), None)


def read_lines(file: Path) -> list[str]:
    return [line.split("#")[0].strip() for line in file.read_text().splitlines()] if file.is_file() else []
