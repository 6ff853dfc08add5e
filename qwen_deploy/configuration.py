"""The configuration of an endpoint: as it is, as it shall be, and the request that leads from one to the other. Pure.

A configuration is flat, by dotted field (`workers.max`), so that two can be compared field by field. Knows nothing of
HTTP.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Required, TypedDict, cast

from .environment import mask_secret
from .errors import UsageError
from .runpod.api import FLASHBOOT_SUFFIX
from .runpod.schemas import Endpoint, JsonObject

# Every field that PATCH can set, in the order of display. `env` is one field: a PATCH replaces it whole.
Configuration = TypedDict(
    "Configuration",
    {
        "name": Required[str],
        "image": Required[str],
        "args": str,
        "disk": int,  # GB
        "ports": list[str],
        "registry": str | None,
        "env": Required[dict[str, str]],
        "gpu.pools": list[str],
        "gpu.excludedTypes": list[str],
        "gpu.count": int,
        "gpu.minCudaVersion": str,
        "gpu.allowedCudaVersions": list[str],
        "workers.min": Required[int],
        "workers.max": Required[int],
        "workers.idleTimeout": int,  # seconds
        "scaling": Required[dict[str, object]],
        "timeout": Required[int],  # milliseconds
        "flashboot": str,
        "dataCenterIds": list[str],
        "networkVolumes": list[str],
    },
    total=False,
)
FIELDS = tuple(Configuration.__annotations__)
UNORDERED = ("ports", "gpu.pools", "gpu.excludedTypes", "gpu.allowedCudaVersions", "dataCenterIds", "networkVolumes")
# What the platform leaves out of an answer where it is empty.
EMPTY: dict[str, object] = {
    "env": {}, "gpu.excludedTypes": [], "gpu.minCudaVersion": "", "gpu.allowedCudaVersions": [], "registry": None,
}  # fmt: skip
REPLACES_WORKERS = ("image", "args", "disk", "ports", "registry", "env")  # a change of these replaces the workers

DEFAULT_WORKERS_MAX = 3
DEFAULTS: dict[str, object] = {
    "disk": 120,  # GB: both 20B models where the image does not bring them, and the tenth that the platform keeps free
    "gpu.count": 1,
    "workers.min": 0,
    "workers.max": DEFAULT_WORKERS_MAX,
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


def flatten(endpoint: Endpoint) -> Configuration:
    """The endpoint's configuration; fields that cannot be set (id, times) are left out."""
    fields: dict[str, object] = {}
    for name in FIELDS:
        outer, _, inner = name.partition(".")
        value = cast(JsonObject, endpoint).get(outer)
        if inner:
            if not isinstance(value, Mapping):
                continue
            value = cast(JsonObject, value).get(inner)
        if value is None and name in EMPTY:
            value = EMPTY[name]
        if value is not None or name == "registry":
            fields[name] = sort_unordered(name, value)
    fields["name"] = str(fields.get("name", "")).removesuffix(FLASHBOOT_SUFFIX)
    return cast(Configuration, fields)


def sort_unordered(name: str, value: object) -> object:
    """The field's value, sorted where its order means nothing."""
    return sorted(cast(list[str], value)) if name in UNORDERED else value


def build_target(
    present: Configuration | None, requested: Mapping[str, object], env: Mapping[str, str], unset: Iterable[str] = ()
) -> Configuration:
    """The configuration to reach: the present one or, where that is None, the defaults, with what is requested on top.

    `requested` are fields, `env` variables to set, `unset` variables to remove. Everything else stays as it is: the
    operator may have set it in the console. Raises `UsageError` where the fields contradict each other.
    """
    before: Mapping[str, object] = present or {**DEFAULTS, "env": DEFAULT_ENV}
    merged = {**cast(dict[str, str], before["env"]), **env}
    # The image says which build it is; a variable of an earlier deployment must not speak for it.
    removed = {*unset, "QWEN_WORKER_VERSION"}
    fields = {**before, **{name: sort_unordered(name, value) for name, value in requested.items()}}
    fields["env"] = {name: value for name, value in merged.items() if name not in removed}
    if "gpu.pools" in requested and fields["gpu.pools"] != before.get("gpu.pools"):
        fields["gpu.excludedTypes"] = []  # the exclusions are of the old pools
    if requested.get("gpu.minCudaVersion"):
        fields["gpu.allowedCudaVersions"] = []  # a floor and a set exclude each other
    target = cast(Configuration, fields)
    if target["workers.min"] > target["workers.max"]:
        low, high = target["workers.min"], target["workers.max"]
        raise UsageError(f"--workers-min must be at most --workers-max, {high}, not {low}.")
    if "workers.idleTimeout" in requested and target["scaling"].get("type") == "REQUEST_COUNT":
        raise UsageError("--idle-timeout has no meaning on this endpoint: it scales on REQUEST_COUNT.")
    return target


def changes(present: Mapping[str, object], target: Mapping[str, object]) -> list[Change]:
    """What differs, in order. Fields that the target does not name stay as they are."""
    return [
        Change(name, present.get(name), target[name])
        for name in FIELDS
        if name in target and target[name] != present.get(name, EMPTY.get(name))
    ]


def nest(fields: Mapping[str, object]) -> JsonObject:
    """The fields as the API nests them."""
    nested: JsonObject = {}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if inner:
            cast(JsonObject, nested.setdefault(outer, {}))[inner] = value
        else:
            nested[outer] = value
    return nested


def create_body(target: Configuration) -> JsonObject:
    """The request that makes the endpoint, without empty fields: the API refuses an empty CUDA constraint here."""
    return {"type": "QUEUE"} | nest({name: value for name, value in target.items() if value not in ("", [], None)})


def patch_body(present: Mapping[str, object], target: Configuration) -> JsonObject:
    """The request that changes what differs, and only that. `{}` where nothing does."""
    fields = {change.field: change.new for change in changes(present, target)}
    if "gpu.pools" in fields or "gpu.excludedTypes" in fields:
        # One selection: pools without exclusions would clear them, exclusions without pools are refused.
        fields |= {name: value for name, value in target.items() if name in ("gpu.pools", "gpu.excludedTypes")}
    if any(name.startswith("workers.") for name in fields):
        # Whole: then it does not matter whether what is left out counts as unchanged or as the default.
        fields |= {name: value for name, value in target.items() if name.startswith("workers.")}
    return nest(fields)


def replaces_workers(changes: Sequence[Change]) -> bool:
    """Whether the platform will count a new version and replace the workers."""
    return any(change.field in REPLACES_WORKERS for change in changes)


def describe_changes(changes: Sequence[Change]) -> list[list[str]]:
    """Rows (field, present, new) for the operator; values of the environment that may be secrets are hidden."""
    rows: list[list[str]] = []
    for change in changes:
        if change.field != "env":
            old, new = (describe_value(change.field, value) for value in (change.old, change.new))
            rows.append([change.field, old, new])
            continue
        before, after = (cast(dict[str, str], value or {}) for value in (change.old, change.new))
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                rows.append([f"env.{name}", mask_secret(name, before.get(name)), mask_secret(name, after.get(name))])
    return rows


def describe_value(name: str, value: object) -> str:
    """A field's value in the words of tables and errors."""
    if value in (None, "", []):
        return "(none)"
    if name == "timeout":
        return f"{cast(int, value) / 1000:g} s"
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in cast(JsonObject, value).values())
    return ", ".join(cast(list[str], value)) if isinstance(value, list) else str(value)
