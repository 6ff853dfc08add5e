"""`volume fill`: a Pod downloads the models to a network volume, is followed by its log, and is deleted in every case.

A run that was killed leaves its Pod: the next one finds it by its name and goes on with it, or deletes it.
"""

import os
from collections.abc import Sequence

from .environment import parse_assignments
from .errors import ApiError, DeployError, UsageError
from .fill_pod import Place, Report, places, pod_body, pod_name, python_image, read_report
from .recommended import chosen_models
from .released import RESEARCH_SENTENCE, download_bytes, gigabytes, research_only
from .runpod.schemas import Pod, Volume
from .runpod.start_log import missing_image
from .runpod.storage import Storage
from .screen import Screen, require_yes
from .session import ROOT, Session, SessionOpener
from .storage_options import FillOptions
from .volumes import find_volume

LOOK_SECONDS = 5.0
ASSUMED_RATE = 100e6  # bytes a second from the hub to a volume, until the log shows the real one
ALIVE = ("PROVISIONING", "STARTING", "RUNNING")
NEXT_PLACE = (400, 403)  # RunPod's answers where this hardware is not to be had and another may be


def fill_volume(screen: Screen, options: FillOptions, open_session: SessionOpener) -> int:
    """The models on the volume, each file verified. The exit code. Raises `DeployError`; the Pod is gone either way."""
    models = chosen_models(options.models)
    env = parse_assignments(options.env, os.environ)
    session = open_session()
    storage = Storage(session.api)
    volume = find_volume(storage.volumes(), options.volume, "volume fill")
    left_over = [pod for pod in storage.pods() if pod["name"] == pod_name(volume)]
    under_way = [pod for pod in left_over if is_same_fill(pod, models)]
    screen.heading(f"Fill volume {volume['name']} ({volume['id']}, {volume['size']} GB) in {volume['dataCenter']}")
    made: Pod | None = under_way[0] if under_way else None
    chosen: list[Place] = []
    if made:
        screen.say(f"Pod {made['id']} of an earlier run does that already, at ${made['cost']:.2f}/h: its work goes on.")
    else:
        chosen = places(storage.pod_cpus(), storage.pod_cards(), volume["dataCenter"])
        show_plan(screen, volume, models, chosen)
        for one in left_over:
            screen.warn(f"Pod {one['id']} of another fill is there, {one['status'].lower()}: it would be deleted.")
        require_yes(screen, options.yes)
    for one in left_over:
        if one is not made:
            storage.delete_pod(one["id"])
            screen.warn(f"Pod {one['id']} of an earlier run was still there, {one['status'].lower()}: it is deleted.")
    try:
        if made is None:
            made = start_pod(session, storage, volume, models, options.image or python_image(ROOT), env, chosen)
        with screen.live_progress():
            sentence = follow(session, storage, made["id"], options.wait)
    finally:
        clean_up(screen, storage, made, volume)
    screen.good(f"Volume {volume['name']} holds {sentence}.")
    screen.say(f"  use it:  python deploy_qwen.py --image ghcr.io/OWNER/qwen-image:TAG --volume {volume['name']}")
    return 0


def is_same_fill(pod: Pod, models: Sequence[str]) -> bool:
    return pod["status"] in ALIVE and pod["env"].get("QWEN_FILL_MODELS", "").split() == list(models)


def show_plan(screen: Screen, volume: Volume, models: Sequence[str], chosen: Sequence[Place]) -> None:
    """Everything that will be done and what it costs. Raises `UsageError` where the volume is too small."""
    size = download_bytes(models)
    cheapest, dearest = (pick(place.price for place in chosen) for pick in (min, max))
    screen.say(f"Models: {', '.join(models)}")
    if size is None:
        screen.say("Their size is not known here: the Pod says it.")
    elif size > volume["size"] * 1e9:
        needed = -(-size // 10**9)
        raise UsageError(
            f"Volume {volume['name']} has {volume['size']} GB, and the models need {gigabytes(size)}. "
            f"`volume create {volume['name']} --size {needed}` makes it larger."
        )
    else:
        hours = size / ASSUMED_RATE / 3600
        screen.say(
            f"Download: {gigabytes(size)}, less what is there already; about {60 * hours:.0f} min at an assumed "
            f"{ASSUMED_RATE / 1e6:.0f} MB/s, so ${cheapest * hours:.2f} to ${dearest * hours:.2f} by the hardware."
        )
    for name in research_only(models):
        screen.warn(f"{name} {RESEARCH_SENTENCE}")
    words = "; else ".join(f"{place.label} at ${place.price:.2f}/h" for place in chosen)
    screen.say(f"It runs in a Pod, which is deleted at the end, on {words}.")


def start_pod(
    session: Session, storage: Storage, volume: Volume, models: Sequence[str], image: str, env: dict[str, str],
    chosen: Sequence[Place],
) -> Pod:  # fmt: skip
    """The Pod on the first hardware that RunPod gives. Raises `DeployError`, also for a price that was not said."""
    refused = ""
    for place in chosen:
        try:
            pod = storage.create_pod(pod_body(volume, models, image, place, env, session.api.client.base))
        except ApiError as error:
            if error.status not in NEXT_PLACE:
                raise
            refused = str(error)
            session.screen.warn(f"{place.label}: {refused}")
            continue
        session.screen.good(f"Pod {pod['id']} is made: {place.label}, ${pod['cost']:.2f}/h.")
        if not pod["cost"] <= place.price * 1.01:  # NaN is no price that was said
            storage.delete_pod(pod["id"])
            raise DeployError(
                f"Pod {pod['id']} would cost ${pod['cost']:.2f}/h, and ${place.price:.2f}/h was said: it is deleted."
            )
        return pod
    raise DeployError(f"RunPod gave no Pod in {volume['dataCenter']}. It said last: {refused}")


def follow(session: Session, storage: Storage, pod_id: str, patience: float) -> str:
    """What the Pod says at its end. Raises `DeployError` where it fails, or nothing moves for `patience` seconds."""
    clock, progress = session.api.client.clock, Progress()
    moved_at, before = clock.now(), ("", Report())
    while True:
        pod = storage.pod(pod_id)
        if pod is None:
            raise DeployError(f"Pod {pod_id} is gone before it said that the volume is filled: run this again.")
        report = read_report(storage.pod_log(pod_id, "container", 40))
        if report.success:
            return report.success
        if report.failure:
            raise DeployError(f"The volume is not filled: {report.failure}.{what_to_do(report.failure)}")
        if pod["status"] not in ALIVE:
            raise DeployError(f"Pod {pod_id} is {pod['status'].lower()} before the volume is filled: run this again.")
        if not report.total and (missing := missing_image(storage.pod_log(pod_id, "system", 100))):
            raise DeployError(f"The Pod's image cannot be pulled: {missing}. --image names another one with Python.")
        now = clock.now()
        if (pod["status"], report) != before:
            moved_at, before = now, (pod["status"], report)
        elif now - moved_at >= patience:
            raise DeployError(f"Nothing has moved for {patience:.0f} s: run this again, it goes on where this ended.")
        session.screen.progress(progress.line(pod["status"], report, now))
        clock.pause(LOOK_SECONDS)


class Progress:
    """Words for how far the Pod is, with the rate since the first bytes."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None  # (bytes, seconds)

    def line(self, status: str, report: Report, now: float) -> str:
        if not report.total:
            return f"Pod {status.lower()}"
        self.first = self.first or (report.done, now)
        seconds = now - self.first[1]
        rate = (report.done - self.first[0]) / seconds if seconds else 0
        words = f"{gigabytes(report.done)} of {gigabytes(report.total)}"
        if rate <= 0:
            return words
        return f"{words} · {rate / 1e6:.0f} MB/s · {(report.total - report.done) / rate / 60:.0f} min left"


def what_to_do(failure: str) -> str:
    if any(word in failure for word in ("full", "space", "quota")):
        return " `volume create NAME --size GB` makes it larger; then run this again, it goes on where this ended."
    if "gated" in failure or "HF_TOKEN" in failure:
        return " Give --env HF_TOKEN."
    return " Run this again: it goes on where this ended."


def clean_up(screen: Screen, storage: Storage, made: Pod | None, volume: Volume) -> None:
    """Delete the Pod; where it is not known whether one was made, any of its name. Says so where that fails."""
    try:
        ids = [made["id"]] if made else [pod["id"] for pod in storage.pods() if pod["name"] == pod_name(volume)]
        for pod_id in ids:
            storage.delete_pod(pod_id)
            screen.good(f"Pod {pod_id} is deleted; the volume keeps what was fetched.")
    except DeployError as failure:
        screen.bad(f"The Pod {pod_name(volume)} could not be deleted: {failure}")
        screen.bad("It costs until it is: run `volume fill` again, or delete it in the console under Pods.")
