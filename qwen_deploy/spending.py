"""The command `spent`: what RunPod has billed for endpoints and for the volumes that they mount.

Knows nothing of what a picture should cost; `cost` computes that.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from .command_options import SpentOptions
from .endpoints import find_endpoint, plain_name, title_of
from .errors import ApiError, DeployError
from .runpod.schemas import BillRecord, Endpoint, EndpointBillRecord, VolumeBillRecord
from .screen import Screen
from .session import Session, SessionOpener

Record = TypeVar("Record", EndpointBillRecord, VolumeBillRecord)
BILLING_PAGE = "https://console.runpod.io/user/billing"
COLUMNS = ["cards", "disk", "fee", "total"]


def spent(screen: Screen, options: SpentOptions, open_session: SessionOpener) -> int:
    """Dollars by endpoint; of one endpoint by day. The exit code."""
    session = open_session()
    try:
        if options.endpoint_id is not None or options.name is not None:
            show_endpoint_bill(session, options.days, find_billed(session, options))
        else:
            show_account_bill(session, options.days)
    except ApiError as error:
        if error.status != 403:
            raise
        raise DeployError(
            "RUNPOD_API_KEY may not read the bill (403). Make a key that may read all of the account, or look at "
            f"{BILLING_PAGE}."
        ) from None
    screen.say(f"Billed by RunPod, in UTC; the present day is not over. The account's own page: {BILLING_PAGE}")
    return 0


def find_billed(session: Session, options: SpentOptions) -> tuple[str, Endpoint | None]:
    """The id whose bill is wanted, and the endpoint; None for one that is deleted, whose bill stays."""
    try:
        endpoint = find_endpoint(session.api, options)
    except ApiError as error:
        if error.status != 404 or not options.endpoint_id:
            raise
        return options.endpoint_id, None
    return endpoint["id"], endpoint


def show_endpoint_bill(session: Session, days: int, billed: tuple[str, Endpoint | None]) -> None:
    """By day, and what its volumes have cost beside it."""
    endpoint_id, endpoint = billed
    records = session.api.bill(days, endpoint_id)
    if not endpoint and not records:
        raise DeployError(f"Endpoint {endpoint_id} does not exist, and nothing was billed in {days_in_words(days)}.")
    title = title_of(endpoint) if endpoint else f"{endpoint_id}, which is deleted"
    session.screen.heading(f"Endpoint {title}: ${total(records):.2f} in {days_in_words(days)}")
    rows = [[record["startTime"][:10], *amounts([record])] for record in records if record["totalAmount"]]
    if rows:
        session.screen.table(["day", *COLUMNS], rows)
    for volume_id in (endpoint or {}).get("networkVolumes", []):
        amount = total(session.api.volume_bill(days, volume_id))
        session.screen.say(f"Its volume {volume_id}: ${amount:.2f} in {days_in_words(days)}, also while it is paused.")


def show_account_bill(session: Session, days: int) -> None:
    """By endpoint, the dearest first, and by volume."""
    names = {endpoint["id"]: plain_name(endpoint) for endpoint in session.api.endpoints()}
    records = group(session.api.bill(days), "serverlessId")
    volumes = group(session.api.volume_bill(days), "networkVolumeId")
    whole = sum(total(group) for groups in (records, volumes) for group in groups.values())
    session.screen.heading(f"${whole:.2f} for endpoints and volumes in {days_in_words(days)}")
    rows = [
        [names.get(endpoint_id, "(deleted)"), endpoint_id, *amounts(own)]
        for endpoint_id, own in sorted(records.items(), key=lambda item: -total(item[1]))
    ]
    rows += [["volume", volume_id, "", "", "", f"{total(own):.2f}"] for volume_id, own in sorted(volumes.items())]
    if rows:
        session.screen.table(["name", "id", *COLUMNS], rows)
    else:
        session.screen.say("Nothing was billed.")


def group(records: Iterable[Record], field: str) -> Mapping[str, list[Record]]:
    """The records by what `field` holds, without the days that cost nothing."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["totalAmount"]:
            groups[str(record.get(field))].append(record)
    return groups


def total(records: Sequence[BillRecord]) -> float:
    return sum(record["totalAmount"] for record in records)


def amounts(records: Sequence[EndpointBillRecord]) -> list[str]:
    """The cells of `COLUMNS`: dollars. A card's share holds a processor's, which an endpoint without cards has."""
    cards = sum(record["gpuAmount"] + record["cpuAmount"] for record in records)
    disk, fee = (sum(record[name] for record in records) for name in ("diskAmount", "feeAmount"))
    return [f"{amount:.2f}" for amount in (cards, disk, fee, total(records))]


def days_in_words(days: int) -> str:
    return f"{days} days" if days > 1 else "1 day"
