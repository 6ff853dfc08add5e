"""What a deployment is to reach: from the options and what RunPod has now. Reads only; decides nothing about how.

Knows nothing of builds, tests or rollbacks.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from . import cards, configuration, purchase, second_card
from .build_plan import weights_notes
from .configuration import Configuration
from .endpoints import endpoint_named, endpoint_with_id
from .environment import cuda_floor, parse_assignments, worker_settings
from .errors import UsageError
from .image import Image
from .options import DeployOptions
from .purchase import Purchase, split_list
from .recommended import environment_of_models
from .runpod.api import Api
from .runpod.schemas import Endpoint
from .runpod.storage import Storage
from .session import ROOT, Session
from .volumes import capacity_notes, find_registry, volume_fields

FORBID_FALLBACK = {"QWEN_FALLBACK": "forbid"}  # while the test jobs run, so that no stand-in can answer them


@dataclass(frozen=True)
class Intent:
    """`endpoint` and its configuration `present` are None where an endpoint will be made."""

    endpoint: Endpoint | None
    present: Configuration | None
    target: Configuration
    tasks: tuple[str, ...]
    version: str  # what the new workers must report
    purchase: Purchase | None  # None where the endpoint keeps its pools
    notes: list[str]

    @property
    def draws_on_two(self) -> bool:
        """Whether one picture is to be drawn on two cards."""
        settings = worker_settings(self.target["env"])
        return second_card.draws_on_two(settings, self.target.get("gpu.count", 1))

    @property
    def changes(self) -> list[configuration.Change]:
        return configuration.changes(self.present or {}, self.target)

    def with_fallback_forbidden(self) -> "Intent":
        """The intent that serves while it is tested.

        A change that leaves the workers running stays as it is: the variable would replace them all.
        """
        if not configuration.replaces_workers(self.changes):
            return self
        target = self.target.copy()
        target["env"] = target["env"] | FORBID_FALLBACK
        return replace(self, target=target)


def read_intent(session: Session, options: DeployOptions, image: Image, version: str) -> Intent:
    """Raises `UsageError` where options contradict each other, the catalogue or the worker's own rules."""
    require_words(options)
    endpoint = find_endpoint(session.api, options, image)
    if endpoint:
        session.queue(endpoint)  # raises for an endpoint that takes no jobs
    present = configuration.flatten(endpoint) if endpoint else None
    requested = fields_from_options(options)
    requested["image"] = image.reference
    if not endpoint:
        requested["name"] = endpoint_name(options, image)
    notes = resolve_names(Storage(session.api), requested, present)
    own_env = present["env"] if present else {}
    env, unset, tasks = environment_from_options(options, own_env)
    env |= second_card.environment_for(options.gpu_count, env, own_env)
    torch_cuda = cuda_floor(ROOT, options.build_arg)
    min_cuda = options.min_cuda or (None if endpoint else torch_cuda)
    if min_cuda:
        requested["gpu.minCudaVersion"] = min_cuda
    if not min_cuda and not endpoint:
        notes.append("No CUDA floor: the torch pin names no CUDA. --min-cuda sets one.")
    target = configuration.build_target(present, requested, env, unset)
    bought = None
    if options.gpu is not None or not endpoint:
        timings, places = session.records.timings(endpoint["id"]) if endpoint else [], target.get("dataCenterIds", [])
        bought = purchase.plan_purchase(
            session.api, options, worker_settings(target["env"]), tasks, torch_cuda,
            target.get("gpu.minCudaVersion") or None, places, target["timeout"] / 1000,
            target.get("gpu.count", 1), timings,
        )  # fmt: skip
        requested["gpu.pools"] = bought.pools
        if not endpoint and not options.execution_timeout:
            requested["timeout"] = bought.limit * 1000
        target = configuration.build_target(present, requested, env, unset)
        notes += bought.notes + purchase.limit_notes(bought.chosen, target["timeout"] / 1000)
        notes += capacity_notes([offer.fit for offer in bought.offers], target.get("gpu.pools", []), places)
    else:
        worker_settings(target["env"])  # raises for an environment that the worker would refuse
    if not endpoint or "networkVolumes" in requested:
        notes += weights_notes(options, target, tasks)
    if target["workers.max"] == 0 and not options.no_test:
        raise UsageError("--workers-max must be at least 1 for the test jobs, not 0; --no-test leaves them out.")
    return Intent(endpoint, present, target, tasks, version, bought, notes)


def resolve_names(storage: Storage, requested: dict[str, object], present: Configuration | None) -> list[str]:
    """Put ids for names of volumes and of a registry's credential, and the volumes' data centres. Notes on these.

    Raises `UsageError` for what is not there, and for a volume in another data centre than those asked for.
    """
    volumes = cast("list[str] | None", requested.get("networkVolumes"))
    places = cast("list[str] | None", requested.get("dataCenterIds"))
    fields, notes = volume_fields(storage, volumes, places, (present or {}).get("networkVolumes", []))
    requested |= fields
    if requested.get("registry"):
        requested["registry"] = find_registry(storage, str(requested["registry"]))
    return notes


def find_endpoint(api: Api, options: DeployOptions, image: Image) -> Endpoint | None:
    """The endpoint to update, or None. Raises `UsageError` where several have the name."""
    if options.endpoint_id is not None:
        return endpoint_with_id(api, options.endpoint_id)
    return endpoint_named(api, endpoint_name(options, image))


def require_words(options: DeployOptions) -> None:
    """Raises `UsageError` for an empty name, which an unset shell variable leaves, and for what is no version."""
    if options.name is not None and not options.name.strip():
        raise UsageError(f"--name must have a letter, not {options.name!r}; without it the image's name is taken.")
    if options.min_cuda is not None and not re.fullmatch(r"\d+\.\d+", options.min_cuda):
        raise UsageError(f"--min-cuda must be a version such as 12.8, not {options.min_cuda!r}.")


def endpoint_name(options: DeployOptions, image: Image) -> str:
    return options.name or image.name.split("/")[-1]


def fields_from_options(options: DeployOptions) -> dict[str, object]:
    """The fields that the options name, in the API's units. Raises `UsageError` for a value out of its range."""
    require_ranges(options)
    values: dict[str, object] = {
        "name": options.name if options.endpoint_id else None,
        "gpu.count": options.gpu_count,
        "workers.min": options.workers_min,
        "workers.max": options.workers_max,
        "workers.idleTimeout": options.idle_timeout,
        "timeout": options.execution_timeout and options.execution_timeout * 1000,
        "flashboot": options.flashboot,
        "disk": options.disk,
        "networkVolumes": None if options.volume is None else [volume for volume in options.volume if volume],
        "dataCenterIds": None if options.data_centers is None else split_list(options.data_centers),
    }
    fields = {name: value for name, value in values.items() if value is not None}
    if options.registry_credential is not None:
        fields["registry"] = options.registry_credential or None
    return fields


def require_ranges(options: DeployOptions) -> None:
    ranges: dict[str, tuple[int, int | None]] = {
        "workers_max": (0, None), "gpu_count": (1, None), "idle_timeout": (1, 3600),
        "execution_timeout": (5, 604_800), "workers_min": (0, None), "disk": (1, None),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        value: int | None = getattr(options, name)
        if value is not None and (value < low or (high is not None and value > high)):
            rule = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UsageError(f"--{name.replace('_', '-')} must be {rule}, not {value}.")


def environment_from_options(
    options: DeployOptions, present: Mapping[str, str]
) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    """Variables to set, names to remove, and the tasks that are served. `present` are the endpoint's variables now."""
    env = environment_of_models(options.models, parse_assignments(options.env, os.environ), options.tasks)
    unset = list(options.unset_env)
    tasks = choose_tasks(options.tasks, {**present, **dict.fromkeys(unset, ""), **env})
    if options.tasks and set(tasks) != choose_all({**present, **env}):
        env["QWEN_TASKS"] = ",".join(tasks)
    elif options.tasks:
        unset.append("QWEN_TASKS")
    for task, name in cards.MODEL_SETTINGS.items():
        if task in tasks and present.get(name) == cards.NO_MODEL and name not in env:
            unset.append(name)
    return env, unset, tasks


def choose_all(env: Mapping[str, str]) -> set[str]:
    """The tasks that an endpoint serves which names none: layers only where it has a model for them."""
    return {*cards.MODEL_SETTINGS} - ({"layers"} if not env.get("QWEN_LAYERED_MODEL") else set())


def choose_tasks(requested: list[str] | None, env: Mapping[str, str]) -> tuple[str, ...]:
    """The tasks asked for, else those that the environment serves."""
    layered = {"QWEN_LAYERED_MODEL": env.get("QWEN_LAYERED_MODEL", "")}
    served = worker_settings({"QWEN_TASKS": env.get("QWEN_TASKS", ""), **layered}).served_roles
    own = [task for task, name in cards.MODEL_SETTINGS.items() if task in served and env.get(name) != cards.NO_MODEL]
    return tuple(task for task in cards.MODEL_SETTINGS if task in (requested or own))
