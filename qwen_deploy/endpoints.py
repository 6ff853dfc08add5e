"""Which endpoint a command is about: named by its id or by its name, or the only one that there is.

Knows nothing of what is done with it.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .errors import DeployError, UsageError
from .runpod.schemas import FLASHBOOT_SUFFIX, Endpoint

if TYPE_CHECKING:
    from .runpod.api import Api  # would bring `requests`, and --help works without packages


class Target(Protocol):
    """What the command line says of the endpoint that is meant."""

    endpoint_id: str | None
    name: str | None


def find_endpoint(api: "Api", options: Target) -> Endpoint:
    """The endpoint that the options name; without a name, the account's only one.

    Raises `UsageError` where that is not one endpoint, and names those that there are with their ids.
    """
    if options.endpoint_id is not None:
        return endpoint_with_id(api, options.endpoint_id)
    if options.name is not None:
        if endpoint := endpoint_named(api, options.name):
            return endpoint
        raise DeployError(
            f"No endpoint is named {options.name or repr(options.name)}. There are: {list_endpoints(api.endpoints())}."
        )
    endpoints = api.endpoints()
    if not endpoints:
        raise DeployError("This account has no endpoint. `deploy_qwen.py --registry docker.io/you` makes one.")
    if len(endpoints) > 1:
        raise UsageError(f"--name or --endpoint-id is needed. There are: {list_endpoints(endpoints)}.")
    return endpoints[0]


def endpoint_with_id(api: "Api", endpoint_id: str) -> Endpoint:
    """Raises `UsageError` for what is no id: an empty shell variable must not become another endpoint."""
    if not re.fullmatch(r"[\w-]+", endpoint_id):
        raise UsageError(f"--endpoint-id must be letters, digits, - and _, as `list` shows it, not {endpoint_id!r}.")
    return api.endpoint(endpoint_id)


def endpoint_named(api: "Api", name: str) -> Endpoint | None:
    """The endpoint of that name, if there is one. Raises `UsageError` with their ids where several have it."""
    endpoints = api.endpoints_named(name)
    if len(endpoints) > 1:
        ids = ", ".join(endpoint["id"] for endpoint in endpoints)
        raise UsageError(f"--endpoint-id is needed: {len(endpoints)} endpoints are named {name}: {ids}.")
    return endpoints[0] if endpoints else None


def list_endpoints(endpoints: Sequence[Endpoint]) -> str:
    """Their names and ids, for a sentence."""
    return ", ".join(map(title_of, endpoints)) or "none"


def title_of(endpoint: Endpoint) -> str:
    """Its name and id."""
    return f"{plain_name(endpoint)} ({endpoint['id']})"


def plain_name(endpoint: Endpoint) -> str:
    """The name as it was given, without what the platform adds to it."""
    return endpoint["name"].removesuffix(FLASHBOOT_SUFFIX)


def resume_command(endpoint: Endpoint) -> str:
    return f"python deploy_qwen.py resume --endpoint-id {endpoint['id']}"
