"""What a deployment is to reach: from the options and what RunPod has now. Reads only; decides nothing about how.

Knows nothing of builds, tests or rollbacks.
"""

import os
from dataclasses import dataclass, replace

from . import cards, configuration
from .environment import cuda_floor, parse_assignments, worker_settings
from .errors import UsageError
from .image import Image
from .runpod.api import Api
from .session import ROOT, Session

FORBID_FALLBACK = {"QWEN_FALLBACK": "forbid"}  # while the test jobs run, so that no stand-in can answer them


@dataclass(frozen=True)
class Intent:
    """`endpoint` is None where one will be made. `present` and `target` are flat configurations."""

    endpoint: dict | None
    present: dict[str, object]
    target: dict[str, object]
    tasks: tuple[str, ...]
    version: str
    fits: list[cards.Fit]
    notes: list[str]

    @property
    def changes(self) -> list[configuration.Change]:
        return configuration.changes(self.present, self.target)

    def with_fallback_forbidden(self) -> "Intent":
        """The same with falling back forbidden: what serves while it is tested.

        A change that leaves the workers running stays as it is: the variable would replace them all.
        """
        if not configuration.replaces_workers(self.changes):
            return self
        return replace(self, target=self.target | {"env": self.target["env"] | FORBID_FALLBACK})


def read_intent(session: Session, options, image: Image, version: str) -> Intent:
    """Raises `UsageError` where options contradict each other, the catalogue or the worker's own rules."""
    endpoint = find_endpoint(session.api, options, image)
    if endpoint:
        session.queue(endpoint)  # refuses one that takes no jobs
    present = configuration.flatten(endpoint) if endpoint else {}
    asked = fields_from_options(options)
    asked["image"] = image.reference
    if not endpoint:
        asked["name"] = endpoint_name(options, image)
    env, unset, tasks = environment_from_options(options, present)
    cuda = cuda_floor(ROOT, options.build_arg)
    floor = options.min_cuda or (None if endpoint else cuda)
    if floor:
        asked["gpu.minCudaVersion"] = floor
    notes = [] if floor or endpoint else ["No CUDA floor: the torch pin names no CUDA. --min-cuda sets one."]
    target = configuration.build_target(present, asked, env, unset)
    settings = worker_settings(target["env"])
    fits = []
    if options.gpu or not endpoint:
        fits, pools = choose_pools(session.api, options, settings, tasks, target.get("gpu.minCudaVersion"), cuda)
        target = configuration.build_target(present, asked | {"gpu.pools": pools}, env, unset)
    if target["workers.max"] == 0 and not options.no_test:
        raise UsageError("--workers-max must be at least 1 for the test jobs, not 0; --no-test leaves them out.")
    return Intent(endpoint, present, target, tasks, version, fits, notes)


def find_endpoint(api: Api, options, image: Image) -> dict | None:
    """The endpoint to update, or None. Raises `UsageError` where the name is not unambiguous."""
    if options.endpoint_id:
        return api.endpoint(options.endpoint_id)
    name = endpoint_name(options, image)
    found = api.endpoints_named(name)
    if len(found) > 1:
        ids = ", ".join(one["id"] for one in found)
        raise UsageError(f"--endpoint-id is needed: {len(found)} endpoints are named {name}: {ids}.")
    return found[0] if found else None


def endpoint_name(options, image: Image) -> str:
    return options.name or image.name.split("/")[-1]


def fields_from_options(options) -> dict[str, object]:
    """The fields that the options name, in the API's units."""
    given = {
        "name": options.name if options.endpoint_id else None,
        "gpu.count": options.gpu_count,
        "workers.min": options.workers_min,
        "workers.max": options.workers_max,
        "workers.idleTimeout": options.idle_timeout,
        "timeout": options.execution_timeout and options.execution_timeout * 1000,
        "flashboot": options.flashboot,
        "disk": options.disk,
        "networkVolumes": options.volume and [one for one in options.volume if one],
        "dataCenterIds": None if options.data_centers is None else split_list(options.data_centers),
    }
    found = {name: value for name, value in given.items() if value is not None}
    if options.registry_credential is not None:
        found["registry"] = options.registry_credential or None
    require_ranges(options)
    return found


def require_ranges(options) -> None:
    ranges = {"idle_timeout": (1, 3600), "execution_timeout": (5, 604_800), "workers_min": (0, None), "disk": (1, None)}
    for name, (low, high) in ({"workers_max": (0, None), "gpu_count": (1, None)} | ranges).items():
        value = getattr(options, name)
        if value is not None and (value < low or (high is not None and value > high)):
            rule = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UsageError(f"--{name.replace('_', '-')} must be {rule}, not {value}.")


def environment_from_options(options, present: dict) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Variables to set, names to remove, and the tasks that are served."""
    env = parse_assignments(options.env, os.environ)
    unset = list(options.unset_env)
    before = present.get("env", {})
    tasks = choose_tasks(options.tasks, before)
    for task, name in cards.MODEL_SETTINGS.items():
        if task not in tasks:
            env[name] = cards.NO_MODEL
        elif before.get(name) == cards.NO_MODEL and name not in env:
            unset.append(name)
    return env, tuple(unset), tasks


def choose_tasks(asked: list[str] | None, env: dict[str, str]) -> tuple[str, ...]:
    """The tasks asked for, else those that the environment gives a model."""
    served = [task for task, name in cards.MODEL_SETTINGS.items() if env.get(name) != cards.NO_MODEL]
    return tuple(task for task in cards.MODEL_SETTINGS if task in (asked or served))


def choose_pools(api: Api, options, settings, tasks, floor, cuda) -> tuple[list[cards.Fit], list[str]]:
    """Every pool with its layout, and the ids of those to take. `floor`: the hosts' CUDA, `cuda`: the torch's."""
    names = split_list(options.gpu or "auto")
    auto, check = names == ["auto"], not options.no_fit_check
    if not auto and not check:
        fits = [cards.Fit(pool, None, "not checked") for pool in cards.read_pools(api, floor or None)]
    else:
        fits = [cards.fit(pool, settings, tasks, options.ram_gb, cuda) for pool in cards.read_pools(api, floor or None)]
    if auto:
        return fits, [cards.choose_cheapest(fits).pool.id]
    return fits, cards.require_pools(names, fits, options.ram_gb, check)


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
