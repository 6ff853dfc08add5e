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
from ..model_settings import Role
from ..settings import Fallback, Settings

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
    load_safety_check: Callable[[], None] = lambda: None,
) -> list[Callable[[], None]]:
    """To be registered with the SDK in this order. Each raises `Unfit`.

    `place` plans a task's model, `preload` loads it, and `try_card` computes on the card or raises `LoadError`, as
    `load_safety_check` does. A model that cannot be had ends the worker only where stand-ins are forbidden; a card that
    does not compute, a safety check that cannot be made, and what `place` and `preload` raise, always do: the platform
    starts another worker, mostly on another host.
    """

    def scratch_is_writable() -> None:
        require_scratch()

    def card_computes() -> None:
        # With `force` no model is loaded, so that no card is needed.
        if settings.QWEN_FALLBACK is not Fallback.FORCE:
            require_card(machine(), try_card)

    def pictures_can_be_checked() -> None:
        # Before the models, whose plans count with the RAM that it leaves.
        try:
            load_safety_check()
        except LoadError as failure:
            raise Unfit(f"safety check: {failure.reason}") from None

    def models_can_be_had() -> None:
        if settings.QWEN_FALLBACK is Fallback.FORBID:
            require_models(settings, place)

    def preloads() -> None:
        if preloaded(settings):
            require_preloads(settings, preload)

    return [scratch_is_writable, card_computes, pictures_can_be_checked, models_can_be_had, preloads]


def require_scratch() -> None:
    """Raises `Unfit` where temporary files cannot be written."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x" * 4096)
    except OSError as error:
        raise Unfit(f"scratch: the folder for temporary files cannot be written ({error.strerror})") from None


def require_card(machine: Machine, try_card: Callable[[], None]) -> None:
    """Raises `Unfit` where a card is here that does not compute; without a card torch is not even imported."""
    if machine.gpu_obstacle:
        raise Unfit(f"card: {machine.gpu_obstacle}")
    if machine.gpu:
        try:
            try_card()
        except LoadError as failure:
            raise Unfit(f"card: {failure.reason}") from None


def require_models(settings: Settings, place: Attempt) -> None:
    """Raises `Unfit` for a model that is preloaded and cannot be had, or where none can be had.

    The model of a task that no job asks for may be missing.
    """
    failures = {role: place(role.value) for role in Role if role in settings.QWEN_TASKS}
    required = preloaded(settings) or (Role if all(failures.values()) else ())
    for role, failure in failures.items():
        if role in required and failure:
            raise Unfit(f"{role.value}: {failure.reason}")


def preloaded(settings: Settings) -> frozenset[Role]:
    """The roles that are loaded before the first job."""
    return settings.QWEN_PRELOAD & settings.QWEN_TASKS


def require_preloads(settings: Settings, preload: Attempt) -> None:
    """Load the models that are preloaded, and wait for them as long as the platform's patience allows.

    Raises `Unfit` for an error, and for a model that cannot be had where stand-ins are forbidden.
    """
    failures: dict[Role, LoadError] = {}
    errors: list[Exception] = []

    def load() -> None:
        try:
            for role in Role:
                if role in preloaded(settings) and (failure := preload(role.value)):
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


def init_seconds() -> float:
    """Seconds that the platform gives a worker to start."""
    try:
        return float(os.environ.get("RUNPOD_INIT_TIMEOUT") or INIT_SECONDS)
    except ValueError:
        return INIT_SECONDS
