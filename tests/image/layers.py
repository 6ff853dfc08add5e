"""What an image is made of: its layers' sizes and files, and whether a secret is anywhere in it."""

import json
import mmap
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Layer:
    """`made_by` is as the image's history has it."""

    file: Path
    made_by: str

    @property
    def size(self) -> int:
        return self.file.stat().st_size

    @property
    def step(self) -> str:
        """The Dockerfile's instruction, without the shell around it and its mounts."""
        return " ".join(re.sub(r"^.*?/bin/sh -c (#\(nop\) )?|--mount=\S+", "", self.made_by, flags=re.DOTALL).split())

    @cached_property
    def files(self) -> dict[str, tarfile.TarInfo]:
        with tarfile.open(self.file) as archive:
            return {member.name.removeprefix("./"): member for member in archive}


class Image:
    """`folder` holds the image as `buildah push --disable-compression ... dir:` writes it."""

    def __init__(self, folder: Path):
        self.folder = folder
        manifest = json.loads((folder / "manifest.json").read_text())
        self.config = json.loads(self.blob(manifest["config"]).read_text())
        steps = [step["created_by"] for step in self.config["history"] if not step.get("empty_layer")]
        self.layers = [Layer(self.blob(one), step) for one, step in zip(manifest["layers"], steps, strict=True)]

    def blob(self, entry: dict) -> Path:
        return self.folder / entry["digest"].removeprefix("sha256:")

    def holding(self, secret: str) -> list[str]:
        """Where the secret is: layers by the step that made them, the configuration, the manifest."""
        named = {layer.file.name: layer.step for layer in self.layers}
        return [named.get(file.name, file.name) for file in self.folder.iterdir() if holds(file, secret.encode())]


def holds(file: Path, secret: bytes) -> bool:
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(secret) >= 0
