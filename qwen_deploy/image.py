"""The container image: its name, the version of what is built, and the tools that build and push it.

Knows nothing of RunPod.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import DeployError, UsageError

PLATFORM = "linux/amd64"  # what RunPod's hosts are; a build on an Arm laptop would not start there
NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
REGISTRY = r"[a-zA-Z0-9.-]+(?::\d+)?(?:/[a-z0-9._-]+)*"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".heic", ".bmp", ".tif", ".tiff")

# By name: the commands that show whether the tool works, that build and that push. The first tool that works is used.
TOOLS = {
    "buildx": (["docker", "buildx", "ls"], ["docker", "buildx", "build", "--load"], ["docker", "push"]),
    "docker": (["docker", "info"], ["docker", "build"], ["docker", "push"]),
    "podman": (["podman", "info"], ["podman", "build"], ["podman", "push"]),
    "buildah": (["buildah", "info"], ["buildah", "build", "--layers"], ["buildah", "push"]),
}


@dataclass(frozen=True)
class Image:
    """`registry` may be empty: then the image exists on this machine only."""

    registry: str
    name: str
    tag: str

    @property
    def reference(self) -> str:
        return "/".join(part for part in (self.registry, f"{self.name}:{self.tag}") if part)

    @property
    def pullable(self) -> bool:
        """Whether RunPod could fetch it: a bare name is nobody's on a registry."""
        return bool(self.registry) or "/" in self.name


class BuildOptions(Protocol):
    """What a build reads of the command line."""

    dockerfile: str
    build_arg: list[str]  # NAME=VALUE
    build_secret: list[str]  # id=..,src=..
    worker_version: str | None


def parse_image(name: str, tag: str, registry: str = "") -> Image:
    """The image of these options. Raises `UsageError` naming the option that no registry would take."""
    for option, value, rule in (("--image-name", name, NAME), ("--tag", tag, TAG), ("--registry", registry, REGISTRY)):
        if (value or option != "--registry") and not re.fullmatch(rule, value):
            raise UsageError(f"{option} must match {rule}, not {value!r}.")
    return Image(registry.rstrip("/"), name, tag)


def parse_reference(reference: str) -> Image:
    """The image of --image. Raises `UsageError` for one that does not name a registry and one build."""
    registry, _, name_and_tag = reference.rpartition("/")
    name, _, tag = name_and_tag.partition(":")
    if not registry or not tag or tag == "latest" or "@" in reference:
        raise UsageError(f"--image must be REGISTRY/NAME:TAG, with the tag of one build, not {reference!r}.")
    return parse_image(name, tag, registry)


def source_version(root: Path) -> str:
    """The commit of the working tree, with a digest of the changes since, so that the text names one build.

    Untracked pictures that no build copies are no change: `send` and callers of the endpoint leave them here. Raises
    `UsageError` outside a git checkout.
    """

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        changes = git("diff", "HEAD", "--binary")
        for file in sorted(git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")):
            path = root / os.fsdecode(file)
            if path.suffix.lower() in PICTURES and not is_copied(root, path):
                continue
            if path.is_symlink():  # git sees where it points, which need not be a file
                changes += file + os.fsencode(os.readlink(path))
            elif file:
                changes += file + path.read_bytes()
    except (OSError, subprocess.CalledProcessError):
        raise UsageError("--tag is needed: this is no git checkout to name the build after.") from None
    return f"{commit}-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def is_copied(root: Path, path: Path) -> bool:
    """Whether the build gets the file: .dockerignore leaves everything out and names, after a `!`, what is let in."""
    rules = root / ".dockerignore"
    lines = rules.read_text().split() if rules.is_file() else []
    allowed = [root / line[1:] for line in lines if line.startswith("!")]
    return "*" not in lines or any(path.is_relative_to(place) for place in allowed)


def find_tool(builder: str = "auto") -> str:
    """The name of a build tool that works on this machine. Raises `DeployError` with what each tool said."""
    reasons: list[str] = []
    for name in TOOLS if builder == "auto" else [builder]:
        probe = TOOLS[name][0]
        if not shutil.which(probe[0]):
            reasons.append(f"{name} is not installed")
            continue
        result = subprocess.run(probe, capture_output=True, text=True, env=environment_without_key())
        if result.returncode == 0:
            return name
        silence = f"`{' '.join(probe)}` ended with {result.returncode}"
        lines = (result.stderr or result.stdout).strip().splitlines() or [silence]
        reasons.append(f"{name} does not work here ({lines[-1].strip()})")
    raise DeployError(f"No tool to build the image with: {'; '.join(reasons)}.")


def build_command(tool: str, image: Image, options: BuildOptions) -> list[str]:
    """The workers report the tag as their version, or --worker-version."""
    command = [*TOOLS[tool][1], "--platform", PLATFORM, "--file", options.dockerfile, "--tag", image.reference]
    for argument in [f"WORKER_VERSION={options.worker_version or image.tag}", *options.build_arg]:
        command += ["--build-arg", argument]
    for secret in options.build_secret:
        command += ["--secret", secret]
    return [*command, "."]


def push_command(tool: str, image: Image) -> list[str]:
    return [*TOOLS[tool][2], image.reference]


def run_command(command: list[str], root: Path, say: Callable[[str], None]) -> None:
    """Run a command with its output on the operator's terminal. Raises `DeployError` where it fails."""
    say("$ " + " ".join(command))
    result = subprocess.run(command, cwd=root, env=environment_without_key())
    if result.returncode:
        hint = f" Is this machine logged in ({command[0]} login)?" if "push" in command else ""
        raise DeployError(f"`{' '.join(command[:3])}` ended with {result.returncode}; its output is above.{hint}")


def environment_without_key() -> dict[str, str]:
    """The shell's environment without the API key, which a build does not need and could store in the image."""
    environment = {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}
    return environment | {"DOCKER_BUILDKIT": "1"}
