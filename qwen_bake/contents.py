"""What will be laid into an image, and where: written once, read by every step of the build. Knows no hub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

GB = 1_000_000_000
# Registries and the tools between refuse or choke on larger ones: 10 GB is the usual limit.
LAYER_BYTES = 8 * GB


@dataclass(frozen=True)
class Blob:
    """The content of a file, by the hash that the hub states: SHA-256 of a large file, git's SHA-1 of a small one.

    `hub_id`, `commit` and `path` are one place to have it from.
    """

    digest: str
    size: int  # bytes
    hub_id: str
    commit: str
    path: str


@dataclass(frozen=True)
class Model:
    """A checkpoint at the commit that `revision` meant when the contents were settled."""

    hub_id: str
    revision: str
    commit: str
    files: Mapping[str, str]  # digests by path


@dataclass(frozen=True)
class Contents:
    """`optional`: a model whose download fails is left out, where otherwise the build fails."""

    optional: bool
    models: Sequence[Model]
    blobs: Mapping[str, Blob]
    layers: Sequence[Sequence[str]]  # of digests

    def layer_of(self, digest: str) -> int:
        """The number of the layer that holds the blob."""
        return next(number for number, digests in enumerate(self.layers) if digest in digests)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def from_json(text: str) -> Contents:
    """The contents that `to_json` wrote."""
    fields = json.loads(text)
    blobs = {digest: Blob(**blob) for digest, blob in fields["blobs"].items()}
    return Contents(fields["optional"], [Model(**model) for model in fields["models"]], blobs, fields["layers"])


class TooLarge(Exception):
    """The files do not fit into the layers; the message has the figures."""


def settle(optional: bool, models: Sequence[Model], blobs: Mapping[str, Blob], count: int) -> Contents:
    """The contents in `count` layers, the last ones perhaps empty. Raises `TooLarge`."""
    layers = into_layers({digest: blob.size for digest, blob in blobs.items()})
    if len(layers) > count:
        raise TooLarge(
            f"The files need {len(layers)} layers of at most {LAYER_BYTES / GB:g} GB; the Dockerfile has {count}."
        )
    return Contents(optional, models, blobs, layers + [[] for _ in range(count - len(layers))])


def into_layers(sizes: Mapping[str, int], limit: int = LAYER_BYTES) -> list[list[str]]:
    """Names in as few layers as first-fit-decreasing finds; the same whatever the order of `sizes`.

    `sizes`: bytes by name; `limit`: bytes of a layer. Raises `TooLarge` for a name that no layer holds.
    """
    layers: list[list[str]] = []
    room: list[int] = []  # bytes that each layer has left
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        if size > limit:
            raise TooLarge(f"{name} has {size / GB:.1f} GB; a layer takes at most {limit / GB:g} GB.")
        number = next((number for number, free in enumerate(room) if free >= size), len(layers))
        if number == len(layers):
            layers.append([])
            room.append(limit)
        layers[number].append(name)
        room[number] -= size
    return layers
