"""What must hold before a worker takes its first job, for the SDK to run at the start; a reason where it does not.

The SDK reports the reason and ends the worker, so that the platform does not send it jobs. Knows nothing of jobs.
"""

import os
import tempfile
import threading
from collections.abc import Callable

from ..errors import LoadError
from ..settings import Fallback, Role, Settings

Attempt = Callable[[str], LoadError | None]
INIT_SECONDS = 420  # the platform's own patience with a start where RUNPOD_INIT_TIMEOUT does not say
INIT_SHARE = 0.8  # of that a preload may take before the first job is taken anyway and waits for it


class Unfit(Exception):
    """Why this worker takes no jobs; its words go to the platform."""


def checks(settings: Settings, place: Attempt, preload: Attempt) -> list[Callable[[], None]]:
    """To be registered with the SDK in this order. Each raises `Unfit`.

    `place(task)` and `preload(task)`: why the task's model cannot be had, or None. Where a model that cannot be had is
    stood in for, it is no reason to end the worker; what they raise always is.
    """

    def scratch_is_writable() -> None:
        try:
            with tempfile.TemporaryFile() as file:
                file.write(b"x" * 4096)
        except OSError as error:
            raise Unfit(f"scratch: the folder for temporary files cannot be written ({error.strerror})") from None

    def models_can_be_had() -> None:
        if settings.QWEN_FALLBACK is not Fallback.FORBID:
            return
        # One that the endpoint does not use may be missing; without any there is nothing to do.
        failures = {role: place(role.value) for role in Role}
        required = settings.QWEN_PRELOAD or (Role if all(failures.values()) else ())
        for role in Role:
            if role in required and failures[role]:
                raise Unfit(f"{role.value}: {failures[role].reason}")

    def preloads() -> None:
        if not settings.QWEN_PRELOAD:
            return
        failures: dict[Role, LoadError] = {}
        broken: list[Exception] = []

        def load() -> None:
            try:
                for role in (one for one in Role if one in settings.QWEN_PRELOAD):
                    if failure := preload(role.value):
                        failures[role] = failure
            except Exception as error:  # noqa: BLE001  of a thread nobody would hear it
                broken.append(error)

        loading = threading.Thread(target=load, name="preload", daemon=True)
        loading.start()
        loading.join(init_seconds() * INIT_SHARE)
        if broken:
            raise Unfit(f"{type(broken[0]).__name__} while loading; the worker's log has the rest")
        if failures and settings.QWEN_FALLBACK is Fallback.FORBID:
            role, failure = next(iter(failures.items()))
            raise Unfit(f"{role.value}: {failure.reason}")

    return [scratch_is_writable, models_can_be_had, preloads]


def init_seconds() -> float:
    """Seconds that the platform gives a worker to start."""
    try:
        return float(os.environ.get("RUNPOD_INIT_TIMEOUT") or INIT_SECONDS)
    except ValueError:
        return INIT_SECONDS
