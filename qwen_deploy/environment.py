"""The environment variables that an endpoint gives its workers, checked by the worker's own settings.

Knows nothing of the operator's environment but the variables that `--env NAME` copies.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from qwen_worker.settings import Settings

from .errors import UsageError

# Variables whose values may be shown; the values of all others may be secrets.
PUBLIC = re.compile(
    r"QWEN_(?!.*(KEY|TOKEN|SECRET|CERTIFICATE))\w+|SERVER_MODE|HF_HOME|TORCH_HOME|RUNPOD_(INIT_TIMEOUT|DEBUG_LEVEL)"
)
CUDA_TAG = re.compile(r"\bcu(\d{2})(\d)\b")
# The CUDA that PyPI's own wheels of a torch release bring; a +cuNNN or a whl/cuNNN index beside the pin says otherwise.
PYPI_CUDA = {"2.14": "13.0"}


class EndpointSettings(Settings):
    """The worker's settings from one mapping alone: the operator's shell does not reach them."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def parse_assignments(assignments: Sequence[str], shell: Mapping[str, str]) -> dict[str, str]:
    """Variables by name, from `NAME=VALUE`, or from `NAME` with the value that `shell` has for it.

    With `NAME` alone a secret stays out of the process list. Raises `UsageError` naming the variable.
    """
    variables: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--env must be NAME=VALUE or NAME, not {name!r}.")
        if not equals and name not in shell:
            raise UsageError(f"--env {name} copies a variable of this shell, where {name} is not set.")
        if name == "RUNPOD_API_KEY":
            raise UsageError(
                "--env RUNPOD_API_KEY: the worker needs no API key, and an endpoint's environment is no safe."
            )
        if name == "QWEN_WORKER_VERSION":
            raise UsageError("--env QWEN_WORKER_VERSION would let any image pass for the new one: the build sets it.")
        variables[name] = value if equals else shell[name]
    return variables


def worker_settings(env: Mapping[str, str]) -> Settings:
    """What the worker will make of the environment. Raises `UsageError` naming the variable that it would refuse."""
    try:
        return EndpointSettings.model_validate(
            {name: value for name, value in env.items() if name in Settings.model_fields and value}
        )
    except ValidationError as error:
        problems = "; ".join(describe_problem(problem) for problem in error.errors())
        raise UsageError(f"The worker would not start with this environment. {problems}.") from None


def describe_problem(problem: ErrorDetails) -> str:
    """The variable, the rule and, where it may be shown, the value. A rule between variables has no one value."""
    if not problem["loc"]:
        return problem["msg"]
    name = str(problem["loc"][0])
    return f"{name}: {problem['msg']}, not {mask_secret(name, str(problem['input']))}"


def mask_secret(name: str, value: str | None) -> str:
    """The value for the operator's eyes: `***` where it may be a secret, as the address of a LoRA may be signed."""
    if value is None:
        return "(none)"
    return value if PUBLIC.fullmatch(name) and "://" not in value else "***"


def join_members(members: frozenset[Enum]) -> str:
    """A setting of several values as the environment holds it: in the order in which their class declares them."""
    declared = type(next(iter(members))) if members else ()
    return ",".join(member.value for member in declared if member in members)


def cuda_floor(root: Path, build_args: Sequence[str] = ()) -> str | None:
    """The CUDA version that the image's torch is built for, which is the least that a host's driver must serve.

    A build argument TORCH_INDEX decides it, else the pin of torch. None where the pin does not name a CUDA and the
    torch release is not in `PYPI_CUDA`.
    """
    lines = [line for name in ("requirements.txt", "Dockerfile") for line in read_lines(root / name)]
    indexes = [argument for argument in build_args if argument.startswith("TORCH_INDEX=")]
    for text in indexes or lines:
        if "torch" in text and (tag := CUDA_TAG.search(text)):
            return f"{int(tag.group(1))}.{tag.group(2)}"
    pins = (re.match(r"torch==(\d+\.\d+)", line) for line in lines)
    return next((PYPI_CUDA.get(pin.group(1)) for pin in pins if pin), None)


def read_lines(file: Path) -> list[str]:
    """The lines without comments; none where the file is absent."""
    return [line.split("#")[0].strip() for line in file.read_text().splitlines()] if file.is_file() else []
