"""What must hold before a worker takes its first job, as checks that the SDK runs at the start.

The SDK reports the reason of a check that fails and ends the worker, so that the platform does not send it jobs. Knows
nothing of jobs.
"""

import os
import tempfile
import threading
from collections.abc import Callable

from ..errors import LoadError
from ..memory.machine import Machine, read_machine
from ..settings import Fallback, Role, Settings

Attempt = Callable[[str], LoadError | None]  # task -> why its model cannot be had, or None
INIT_SECONDS = 420  # the platform's own patience with a start where RUNPOD_INIT_TIMEOUT does not say
INIT_SHARE = 0.8  # of that patience a preload may take; then the first job is taken anyway and waits for the model


class Unfit(Exception):
    """Why this worker takes no jobs; its words go to the platform."""


def checks(
    settings: Settings,
    place: Attempt,
    preload: Attempt,
    try_card: Callable[[], None],
    machine: Callable[[], Machine] = read_machine,
) -> list[Callable[[], None]]:
    """To be registered with the SDK in this order. Each raises `Unfit`.

    `place` plans a task's model, `preload` loads it, and `try_card` computes on the card or raises `LoadError`. A model
    that cannot be had ends the worker only where stand-ins are forbidden; a card that does not compute, and what
    `place` and `preload` raise, always do: the platform starts another worker, mostly on another host.
    """

    def scratch_is_writable() -> None:
        try:
            with tempfile.TemporaryFile() as file:
                file.write(b"x" * 4096)
        except OSError as error:
            raise Unfit(f"scratch: the folder for temporary files cannot be written ({error.strerror})") from None

    def card_computes() -> None:
        if settings.QWEN_FALLBACK is Fallback.FORCE:  # no model is loaded, so that no card is needed
            return
        here = machine()
        if here.gpu_obstacle:
            raise Unfit(f"card: {here.gpu_obstacle}")
        if here.gpu:  # else torch is not even imported
            try:
                try_card()
            except LoadError as failure:
                raise Unfit(f"card: {failure.reason}") from None

    def models_can_be_had() -> None:
        if settings.QWEN_FALLBACK is not Fallback.FORBID:
            return
        # A model that the endpoint does not use may be missing; without any model there is nothing to do.
        failures = {role: place(role.value) for role in Role}
        required = settings.QWEN_PRELOAD or (Role if all(failures.values()) else ())
        for role, failure in failures.items():
            if role in required and failure:
                raise Unfit(f"{role.value}: {failure.reason}")

    def preloads() -> None:
        if not settings.QWEN_PRELOAD:
            return
        failures: dict[Role, LoadError] = {}
        errors: list[Exception] = []

        def load() -> None:
            try:
                for role in Role:
                    if role in settings.QWEN_PRELOAD and (failure := preload(role.value)):
                        failures[role] = failure
            except Exception as error:  # noqa: BLE001  nobody hears an exception of this thread
                errors.append(error)

        loading = threading.Thread(target=load, name="preload", daemon=True)
        loading.start()
        loading.join(init_seconds() * INIT_SHARE)
        if errors:
            raise Unfit(f"{type(errors[0]).__name__} while loading; the worker's log has the rest")
        if failures and settings.QWEN_FALLBACK is Fallback.FORBID:
            role, failure = next(iter(failures.items()))
            raise Unfit(f"{role.value}: {failure.reason}")

    return [scratch_is_writable, card_computes, models_can_be_had, preloads]


def init_seconds() -> float:
    """Seconds that the platform gives a worker to start."""
    try:
        return float(os.environ.get("RUNPOD_INIT_TIMEOUT") or INIT_SECONDS)
    except ValueError:
        return INIT_SECONDS
