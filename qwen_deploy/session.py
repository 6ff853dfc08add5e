"""What all commands work with: the API with the key, the screen, the saved configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


def open_session(screen: Screen, state: Path, environment: Mapping[str, str], clock: Clock) -> Session:
    """With RUNPOD_API_KEY of the environment; RUNPOD_API_URL, for tests and proxies, replaces RunPod's address.

    `state` is the folder of saved configurations. Raises `UsageError` without a key.
    """
    key = read_key(environment)
    screen.secrets.append(key)
    client = Client(key, environment.get("RUNPOD_API_URL") or BASE, clock, screen.warn)
    return Session(screen, Api(client), Records(state, key))
