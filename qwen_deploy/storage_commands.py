"""The commands around weights and images: `volume`, `registry`, `models`, each a short story of its own."""

import os

from qwen_worker.checkpoints import classes

from . import released
from .cards import fit, group_pools
from .command_options import RAM_GB
from .environment import cuda_floor, worker_settings
from .errors import DeployError, UsageError
from .fill import fill_volume
from .fill_pod import pod_name
from .released import DEFAULT_MODELS, download_bytes, environment_of, gigabytes
from .runpod.schemas import Volume
from .runpod.storage import Storage
from .screen import Screen, require_yes
from .session import ROOT, Action, SessionOpener
from .storage_options import (
    AddRegistryOptions,
    CreateVolumeOptions,
    ModelsOptions,
    RegistryListOptions,
    VolumeListOptions,
    VolumeOptions,
)
from .volumes import find_volume, monthly_price, named, require_unused

LEAST_GB, MOST_GB = 10, 4096  # of a volume, as RunPod has it


def volume(screen: Screen, options: VolumeListOptions, open_session: SessionOpener) -> int:
    """The action of `volume` that the command line names. The exit code."""
    stories: dict[str, Action] = {
        "list": list_volumes, "create": create_volume, "fill": fill_volume, "delete": delete_volume,
    }  # fmt: skip
    return stories[options.action](screen, options, open_session)


def list_volumes(screen: Screen, options: VolumeListOptions, open_session: SessionOpener) -> int:
    storage = Storage(open_session().api)
    volumes, endpoints, pods = storage.volumes(), storage.api.endpoints(), storage.pods()
    if not volumes:
        screen.say("This account has no network volume. `volume create NAME` makes one.")
        return 0
    rows: list[list[str]] = []
    for one in volumes:
        users = [end["name"] for end in endpoints if one["id"] in end.get("networkVolumes", [])]
        price = f"${monthly_price(one['size']):.2f}"
        rows.append([one["name"], one["id"], f"{one['size']} GB", one["dataCenter"], price, ", ".join(users)])
    screen.table(["name", "id", "size", "data centre", "$/month", "mounted by"], rows, whole=("id", "$/month"))
    screen.say("$/month: by RunPod's price list. `spent` shows what was billed.")
    names = {pod_name(one): one["name"] for one in volumes}
    for pod in pods:
        if pod["name"] in names:
            screen.warn(
                f"Pod {pod['id']} of a `volume fill {names[pod['name']]}` is still there, {pod['status'].lower()}, at "
                f"${pod['cost']:.2f}/h: run that again to go on."
            )
    return 0


def create_volume(screen: Screen, options: CreateVolumeOptions, open_session: SessionOpener) -> int:
    """A new volume, or a larger one where the name is there. The exit code."""
    models = list(options.models or DEFAULT_MODELS)
    needed = download_bytes(models)
    if options.size is None and needed is None:
        raise UsageError("--size is needed: the size of these models is not known here.")
    size = options.size or max(LEAST_GB, -(-(needed or 0) * 11 // 10 // 10**10) * 10)
    if not LEAST_GB <= size <= MOST_GB:
        raise UsageError(f"--size must be from {LEAST_GB} to {MOST_GB} GB, not {size}.")
    storage = Storage(open_session().api)
    if there := named(storage.volumes(), options.volume):
        return grow_volume(screen, options, storage, there)
    data_center = choose_data_center(screen, storage, options, models)
    screen.heading(f"A new volume {options.volume}: {size} GB in {data_center}")
    screen.say(f"It costs ${monthly_price(size):.2f} a month by RunPod's price list, until `volume delete`.")
    screen.say(f"The endpoints that mount it have workers in {data_center} alone.")
    require_yes(screen, options.yes)
    made = storage.create_volume(options.volume, size, data_center)
    screen.good(f"Volume {made['name']} ({made['id']}) is there: {made['size']} GB in {made['dataCenter']}.")
    screen.say(f"  fill it: python deploy_qwen.py volume fill {made['name']}")
    return 0


def grow_volume(screen: Screen, options: CreateVolumeOptions, storage: Storage, there: list[Volume]) -> int:
    """Make the volume of this name as large as --size. The exit code. Raises `UsageError` for a smaller one."""
    one = find_volume(there, options.volume, "volume create")
    if options.data_center not in (None, one["dataCenter"]):
        raise UsageError(f"A volume {one['name']} is in {one['dataCenter']}, and cannot move: take another name.")
    size = options.size or one["size"]
    if size < one["size"]:
        raise UsageError(f"--size must be at least {one['size']}, which volume {one['name']} has: none can shrink.")
    if size == one["size"]:
        screen.good(f"Volume {one['name']} ({one['id']}) is there already: {size} GB in {one['dataCenter']}.")
        return 0
    screen.heading(f"Volume {one['name']} ({one['id']}): {size} GB in place of {one['size']}")
    screen.say(
        f"It then costs ${monthly_price(size):.2f} a month in place of ${monthly_price(one['size']):.2f}, by RunPod's "
        "price list. It cannot be made smaller again."
    )
    require_yes(screen, options.yes)
    grown = storage.grow_volume(one["id"], size)
    screen.good(f"Volume {grown['name']} has {grown['size']} GB.")
    return 0


def choose_data_center(screen: Screen, storage: Storage, options: CreateVolumeOptions, models: list[str]) -> str:
    """The one asked for, else the one with the most pools in stock that hold the models. Raises `DeployError`."""
    centers = {center["id"] for center in storage.data_centers() if center["networkVolumeTypes"]}
    if options.data_center and options.data_center not in centers:
        raise UsageError(
            f"--data-center must be one with volumes, not {options.data_center}: {', '.join(sorted(centers))}."
        )
    env, tasks = environment_of(models)
    settings, torch_cuda, gpus = worker_settings(env), cuda_floor(ROOT), storage.api.gpus(cuda_floor(ROOT))
    rows: list[tuple[str, list[str]]] = []
    for center in sorted(centers):
        pools = [pool for pool in group_pools(gpus, [center]) if pool.stock != "NONE"]
        holding = [pool.id for pool in pools if not tasks or fit(pool, settings, tasks, RAM_GB, torch_cuda).plan]
        rows.append((center, holding))
    rows.sort(key=lambda row: (-len(row[1]), row[0]))
    found = dict(rows)
    chosen = options.data_center or next(iter(found), None)
    if chosen is None or not (found[chosen] or options.data_center):
        raise DeployError(
            "No data centre with volumes has a card for the models now: try later, or name --data-center."
        )
    shown = {center: found[center] for center in [chosen, *[center for center, _ in rows[:5] if center != chosen]]}
    cells = [["*" if center == chosen else "", center, ", ".join(shown[center]) or "none"] for center in shown]
    screen.table(["", "data centre", "pools that hold the models and have cards now"], cells, whole=("data centre",))
    if not found[chosen]:
        screen.warn(f"{chosen} has no card for the models now.")
    return chosen


def delete_volume(screen: Screen, options: VolumeOptions, open_session: SessionOpener) -> int:
    """The exit code. Raises `DeployError` for a volume that something mounts."""
    storage = Storage(open_session().api)
    one = find_volume(storage.volumes(), options.volume, "volume delete")
    require_unused(storage, one)
    screen.heading(f"Delete volume {one['name']} ({one['id']}, {one['size']} GB in {one['dataCenter']})")
    screen.say(f"All that it holds is lost, for good. It costs ${monthly_price(one['size']):.2f} a month less.")
    require_yes(screen, options.yes)
    storage.delete_volume(one["id"])
    screen.good(f"Volume {one['name']} is deleted.")
    return 0


def registry(screen: Screen, options: RegistryListOptions, open_session: SessionOpener) -> int:
    """The action of `registry` that the command line names. The exit code."""
    stories: dict[str, Action] = {"list": list_registries, "add": add_registry}
    return stories[options.action](screen, options, open_session)


def list_registries(screen: Screen, options: RegistryListOptions, open_session: SessionOpener) -> int:
    credentials = Storage(open_session().api).registries()
    if not credentials:
        screen.say("RunPod keeps no credential of a registry for this account: it pulls public images.")
        return 0
    screen.table(["name", "id"], [[one["name"], one["id"]] for one in credentials])
    return 0


def add_registry(screen: Screen, options: AddRegistryOptions, open_session: SessionOpener) -> int:
    """The exit code. The password comes from the environment or the terminal: arguments are seen by everybody."""
    password = os.environ.get("REGISTRY_PASSWORD") or screen.ask_secret("Password or token of the registry: ")
    if not password:
        raise UsageError("REGISTRY_PASSWORD is not set: export it, or run this on a terminal, which asks.")
    screen.secrets.append(password)
    storage = Storage(open_session().api)
    there = [one for one in storage.registries() if one["name"] == options.registry_name]
    if there:
        raise UsageError(
            f"A credential {options.registry_name} is there already ({there[0]['id']}), and RunPod changes none: take "
            "another name, or delete that one in the console."
        )
    made = storage.create_registry(options.registry_name, options.username, password)
    screen.good(f"RunPod keeps the credential {made['name']} ({made['id']}).")
    screen.say(f"  use it:  python deploy_qwen.py ... --registry-credential {made['name']}")
    return 0


def models(screen: Screen, options: ModelsOptions, open_session: SessionOpener) -> int:
    """Every released checkpoint, its licence, and how it fits on which cards, alone. Needs no key. The exit code."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in classes.RELEASED:
        words = released.describe_fits(released.fits_of(name, options.ram_gb, cuda_floor(ROOT)))
        facts = f"{gigabytes(download_bytes([name]) or 0)} · {released.licence(name)}"
        alike.setdefault((facts, *words), []).append(name)
    for (facts, *words), names in alike.items():
        screen.heading(facts)
        for name in names:
            screen.say(f"  {name:<26} {' and '.join(released.tasks_of(name))}")
        for phrase in words:
            screen.say(f"    {phrase}")
    screen.say(
        f"\nComputed for one model alone on a worker with {options.ram_gb:g} GB of RAM. bf16 is exact; the others "
        "change the pictures a little."
    )
    for name in released.RESEARCH_ONLY:
        screen.warn(f"{name} {released.RESEARCH_SENTENCE}")
    return 0


ACTIONS: dict[str, Action] = {"volume": volume, "registry": registry, "models": models}
