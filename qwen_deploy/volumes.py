"""Network volumes by name or id, the data centre that each pins an endpoint to, and what cards there are in it.

Reads only. Knows nothing of what volumes hold.
"""

from collections.abc import Sequence

from .cards import Fit
from .errors import ApiError, DeployError, UsageError
from .runpod.schemas import Pod, Volume
from .runpod.storage import Storage

# By RunPod's price list, which its API does not name: dollars a GB and month, below 1 TB and beyond.
MONTHLY, MONTHLY_BEYOND, BEYOND_GB = 0.07, 0.05, 1000


def monthly_price(size: int) -> float:
    """Dollars a month of a volume of so many GB, by RunPod's price list."""
    return MONTHLY * min(size, BEYOND_GB) + MONTHLY_BEYOND * max(0, size - BEYOND_GB)


def find_volume(volumes: Sequence[Volume], name: str, option: str = "--volume") -> Volume:
    """The volume of this id or name. Raises `UsageError` where that is not one volume, and names those there are."""
    found = [volume for volume in volumes if volume["id"] == name] or named(volumes, name)
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{volume['id']} in {volume['dataCenter']}" for volume in found)
        raise UsageError(f"{option} {name}: {len(found)} volumes have this name; give the id of one: {ids}.")
    there = ", ".join(f"{volume['name']} ({volume['id']})" for volume in volumes) or "none"
    raise UsageError(f"{option} {name}: there is no such volume. There are: {there}. `volume create` makes one.")


def named(volumes: Sequence[Volume], name: str) -> list[Volume]:
    return [volume for volume in volumes if volume["name"] == name]


def volume_fields(
    storage: Storage, asked: Sequence[str] | None, data_centers: list[str] | None, present: Sequence[str]
) -> tuple[dict[str, object], list[str]]:
    """An endpoint's fields for the volumes `asked` for by name or id, and notes for the operator.

    `data_centers` and `asked` are None where the operator gave none, `present` the ids of the endpoint's volumes now.
    The data centres are the volumes' own where none are given. Raises `UsageError` for a volume in another one.
    """
    names = present if asked is None else [name for name in asked if name]
    if not names:
        fields: dict[str, object] = {} if asked is None else {"networkVolumes": []}
        stays = bool(present) and asked is not None and data_centers is None
        return fields, ["The endpoint stays in the data centre of its volume: --data-centers '' lifts that."] * stays
    if asked is None and data_centers is None:
        return {}, []
    listed = storage.volumes()
    volumes = [find_volume(listed, name) for name in names]
    places = sorted({volume["dataCenter"] for volume in volumes})
    for volume in volumes:
        if data_centers and volume["dataCenter"] not in data_centers:
            raise UsageError(
                f"Volume {volume['name']} ({volume['id']}) is in {volume['dataCenter']}, and --data-centers names "
                f"{', '.join(data_centers)}: workers there cannot mount it. Leave --data-centers out."
            )
    ids = [volume["id"] for volume in volumes]
    return {"networkVolumes": ids, "dataCenterIds": data_centers or places}, []


def require_unused(storage: Storage, volume: Volume) -> None:
    """Raises `DeployError` naming the endpoints and Pods that mount the volume."""
    users = [
        f"endpoint {endpoint['name']} ({endpoint['id']})"
        for endpoint in storage.api.endpoints()
        if volume["id"] in endpoint.get("networkVolumes", [])
    ]
    users += [f"Pod {pod['name']} ({pod['id']})" for pod in storage.pods() if volume["id"] in mounted_volumes(pod)]
    if users:
        raise DeployError(
            f"Volume {volume['name']} ({volume['id']}) is mounted by {', '.join(users)}: nothing deleted."
        )


def mounted_volumes(pod: Pod) -> list[str]:
    return [mount["volumeId"] for mount in pod.get("mounts", {}).get("network", [])]


def capacity_notes(fits: Sequence[Fit], chosen: Sequence[str], data_centers: Sequence[str]) -> list[str]:
    """What the operator should know of cards in the data centres that the endpoint is bound to."""
    stocks = [each.pool.stock for each in fits if each.pool.id in chosen]
    if not data_centers or not stocks or any(stock != "NONE" for stock in stocks):
        return []
    return [
        f"No card of {', '.join(chosen)} is to be had in {', '.join(data_centers)} now: workers would wait for one."
    ]


def find_registry(storage: Storage, name: str) -> str:
    """The id of a registry's credential by its name or id. Raises `UsageError` for one that is not there."""
    try:
        credentials = storage.registries()
    except ApiError as error:
        if error.status != 403:
            raise
        return name  # a key for endpoints alone may use a credential whose id it is given
    found = [one["id"] for one in credentials if name in (one["id"], one["name"])]
    if not found:
        there = ", ".join(f"{one['name']} ({one['id']})" for one in credentials) or "none"
        raise UsageError(
            f"--registry-credential {name}: there is no such credential. There are: {there}. `registry add`."
        )
    return found[0]
