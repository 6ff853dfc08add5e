"""What all commands work with: the API with the key, the screen, the saved configurations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ApiError
from .records import Records
from .runpod.api import BASE, Api
from .runpod.client import Client, Clock, read_key
from .runpod.jobs import Queue
from .runpod.schemas import Endpoint
from .screen import Screen

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Session:
    screen: Screen
    api: Api
    records: Records

    def queue(self, endpoint: Endpoint) -> Queue:
        """Raises `DeployError` for an endpoint that takes no queued jobs."""
        return Queue(self.api.client, endpoint)

    def job_counts(self, endpoint: Endpoint) -> dict[str, int] | None:
        """Jobs by state; None for an endpoint without a queue, or where the key may not look into it."""
        if "run" not in (endpoint.get("requestUrls") or {}):
            return None
        try:
            return self.queue(endpoint).job_counts()
        except ApiError as error:
            if error.status not in (401, 403):
                raise
            return None


SessionOpener = Callable[[], Session]
# What a command does: it takes the options of that command (hence Any) and returns the exit code.
Action = Callable[[Screen, Any, SessionOpener], int]


def open_session(screen: Screen, state: Path, environment: Mapping[str, str], clock: Clock) -> Session:
    """With RUNPOD_API_KEY of the environment; RUNPOD_API_URL, for tests and proxies, replaces RunPod's address.

    `state` is the folder of saved configurations. Raises `UsageError` without a key.
    """
    key = read_key(environment)
    screen.secrets.append(key)
    client = Client(key, environment.get("RUNPOD_API_URL") or BASE, clock, screen.warn)
    return Session(screen, Api(client), Records(state, key))
