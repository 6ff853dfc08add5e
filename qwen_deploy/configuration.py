"""What an endpoint shall be, and what that changes: pure, from the present configuration and the wanted one.

A configuration is held flat, by dotted field (`workers.max`), so that two can be compared field by field. Knows
nothing of HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .environment import mask_secret
from .errors import UsageError
from .runpod.api import FLASHBOOT_SUFFIX

# Every field that PATCH can set, in the order of display. `env` is one field: a PATCH replaces it whole.
FIELDS = (
    "name", "image", "args", "disk", "ports", "registry", "env",
    "gpu.pools", "gpu.excludedTypes", "gpu.count", "gpu.minCudaVersion", "gpu.allowedCudaVersions",
    "workers.min", "workers.max", "workers.idleTimeout", "scaling", "timeout", "flashboot",
    "dataCenterIds", "networkVolumes",
)  # fmt: skip
UNORDERED = ("ports", "gpu.pools", "gpu.excludedTypes", "gpu.allowedCudaVersions", "dataCenterIds", "networkVolumes")
# What the platform leaves out of an answer where it is empty.
EMPTY = {"env": {}, "gpu.excludedTypes": [], "gpu.minCudaVersion": "", "gpu.allowedCudaVersions": [], "registry": None}
REPLACES_WORKERS = ("image", "args", "disk", "ports", "registry", "env")  # a change of these replaces the workers

DEFAULTS = {
    "disk": 120,  # GB: both 20B models where the image does not bring them, and the tenth that the platform keeps free
    "gpu.count": 1,
    "workers.min": 0,
    "workers.max": 3,
    "workers.idleTimeout": 10,  # seconds
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "timeout": 300_000,  # ms
    "flashboot": "FLASHBOOT",
}
DEFAULT_ENV = {
    "SERVER_MODE": "runpod",
    "HF_HOME": "/tmp/.huggingface",
    "TORCH_HOME": "/tmp/.torch",
    "RUNPOD_INIT_TIMEOUT": "800",  # seconds; at 420, its default, the platform gives up on a cold start with weights
}


@dataclass(frozen=True)
class Change:
    field: str
    old: object
    new: object


def flatten(endpoint: Mapping) -> dict[str, object]:
    """The endpoint's configuration by dotted field; what cannot be set (id, times) is left out."""
    found = {}
    for name in FIELDS:
        outer, _, inner = name.partition(".")
        value = endpoint.get(outer)
        if inner:
            if not isinstance(value, Mapping):
                continue
            value = value.get(inner)
        if value is None and name in EMPTY:
            value = EMPTY[name]
        if value is not None or name == "registry":
            found[name] = sorted(value) if name in UNORDERED else value
    if "name" in found:
        found["name"] = found["name"].removesuffix(FLASHBOOT_SUFFIX)
    return found


def build_target(
    current: dict[str, object], asked: dict[str, object], env: Mapping[str, str], unset: tuple[str, ...] = ()
):
    """The configuration to reach: the present one (or, for a new endpoint, the defaults) with what was asked on top.

    What is not asked for stays as it is: the operator may have set it in the console. Raises `UsageError` where the
    fields contradict each other.
    """
    base = current or DEFAULTS | {"env": DEFAULT_ENV}
    merged = {name: value for name, value in {**base["env"], **env}.items() if name not in unset}
    # The image says which build it is; a variable of an earlier deployment must not speak for it.
    merged.pop("QWEN_WORKER_VERSION", None)
    asked = {name: sorted(value) if name in UNORDERED else value for name, value in asked.items()}
    found = {**base, **asked, "env": merged}
    if "gpu.pools" in asked and found["gpu.pools"] != base.get("gpu.pools"):
        found["gpu.excludedTypes"] = []  # they belong to the pools they were taken from
    if asked.get("gpu.minCudaVersion"):
        found["gpu.allowedCudaVersions"] = []  # a floor and a set exclude each other
    if found["workers.min"] > found["workers.max"]:
        low, high = found["workers.min"], found["workers.max"]
        raise UsageError(f"--workers-min must be at most --workers-max, {high}, not {low}.")
    if "workers.idleTimeout" in asked and found["scaling"].get("type") == "REQUEST_COUNT":
        raise UsageError("--idle-timeout has no meaning on this endpoint: it scales on REQUEST_COUNT.")
    return found


def changes(current: dict[str, object], target: dict[str, object]) -> list[Change]:
    """What differs, in order. Fields that the target does not name stay as they are."""
    return [
        Change(name, current.get(name), target[name])
        for name in FIELDS
        if name in target and target[name] != current.get(name, EMPTY.get(name))
    ]


def nest(fields: Mapping[str, object]) -> dict:
    """The fields as the API nests them. Empty CUDA constraints of a new endpoint are left out."""
    found: dict = {}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[outer] = value
    return found


def create_body(target: dict[str, object]) -> dict:
    """The request that makes the endpoint."""
    return {"type": "QUEUE"} | nest({name: value for name, value in target.items() if value not in ("", [], None)})


def patch_body(current: dict[str, object], target: dict[str, object]) -> dict:
    """The request that changes what differs, and only that. `{}` where nothing does."""
    fields = {change.field: change.new for change in changes(current, target)}
    if "gpu.pools" in fields or "gpu.excludedTypes" in fields:
        # One selection: pools without exclusions would clear them, exclusions without pools are refused.
        fields |= {name: target[name] for name in ("gpu.pools", "gpu.excludedTypes") if name in target}
    if any(name.startswith("workers.") for name in fields):
        # Whole: then it does not matter whether what is left out counts as unchanged or as the default.
        fields |= {name: value for name, value in target.items() if name.startswith("workers.")}
    return nest(fields)


def replaces_workers(found: list[Change]) -> bool:
    """Whether the platform will count a new version and replace the workers."""
    return any(change.field in REPLACES_WORKERS for change in found)


def describe_changes(found: list[Change]) -> list[list[str]]:
    """Rows (field, present, new) for the operator; values of the environment that may be secrets are hidden."""
    rows = []
    for change in found:
        if change.field != "env":
            rows.append(
                [change.field, describe_value(change.field, change.old), describe_value(change.field, change.new)]
            )
            continue
        old, new = change.old or {}, change.new
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                rows.append([f"env.{name}", mask_secret(name, old.get(name)), mask_secret(name, new.get(name))])
    return rows


def describe_value(name: str, value: object) -> str:
    if value in (None, "", []):
        return "(none)"
    if name == "timeout":
        return f"{value / 1000:g} s"
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in value.values())
    return ", ".join(value) if isinstance(value, list) else str(value)
