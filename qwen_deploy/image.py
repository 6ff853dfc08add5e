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

from .errors import DeployError, UsageError

PLATFORM = "linux/amd64"  # what RunPod's hosts are; a build on an Arm laptop would not start there
NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
REGISTRY = r"[a-zA-Z0-9.-]+(?::\d+)?(?:/[a-z0-9._-]+)*"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"

# (tool, what shows that it works, build, push); the first that works is taken.
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


def parse_image(name: str, tag: str, registry: str = "") -> Image:
    """Raises `UsageError` naming the option that no registry would take."""
    for option, value, rule in (("--image-name", name, NAME), ("--tag", tag, TAG), ("--registry", registry, REGISTRY)):
        if (value or option != "--registry") and not re.fullmatch(rule, value):
            raise UsageError(f"{option} must match {rule}, not {value!r}.")
    return Image(registry.rstrip("/"), name, tag)


def source_version(root: Path) -> str:
    """What the working tree is: its commit, with a digest of what is changed since, so that it names one build.

    Raises `UsageError` outside a git checkout.
    """

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        changed = git("diff", "HEAD", "--binary")
        for file in sorted(git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")):
            path = root / os.fsdecode(file)
            if path.is_symlink():  # git sees where it points, which need not be a file
                changed += file + os.fsencode(os.readlink(path))
            elif file:
                changed += file + path.read_bytes()
    except (OSError, subprocess.CalledProcessError):
        raise UsageError("--tag is needed: this is no git checkout to name the build after.") from None
    return f"{commit}-{hashlib.sha256(changed).hexdigest()[:8]}" if changed else commit


def find_tool(asked: str = "auto") -> str:
    """The name of a build tool that works here. Raises `DeployError` with what each said."""
    names = list(TOOLS) if asked == "auto" else [asked]
    said = []
    for name in names:
        probe = TOOLS[name][0]
        if not shutil.which(probe[0]):
            said.append(f"{name} is not installed")
            continue
        done = subprocess.run(probe, capture_output=True, text=True, env=environment_without_key())
        if done.returncode == 0:
            return name
        words = (done.stderr or done.stdout).strip().splitlines() or [
            f"`{' '.join(probe)}` ended with {done.returncode}"
        ]
        said.append(f"{name} does not work here ({words[-1].strip()})")
    raise DeployError(f"No tool to build the image with: {'; '.join(said)}.")


def build_command(tool: str, image: Image, options) -> list[str]:
    """`options` are those of the command line. The workers report the tag as their version, or --worker-version."""
    command = [*TOOLS[tool][1], "--platform", PLATFORM, "--file", options.dockerfile, "--tag", image.reference]
    for argument in [f"WORKER_VERSION={options.worker_version or image.tag}", *options.build_arg]:
        command += ["--build-arg", argument]
    for secret in options.build_secret:
        command += ["--secret", secret]
    return [*command, "."]


def push_command(tool: str, image: Image) -> list[str]:
    return [*TOOLS[tool][2], image.reference]


def run_command(command: list[str], root: Path, say: Callable[[str], None]) -> None:
    """Run it with its output on the operator's terminal. Raises `DeployError` where it fails."""
    say("$ " + " ".join(command))
    done = subprocess.run(command, cwd=root, env=environment_without_key())
    if done.returncode:
        hint = f" Is this machine logged in ({command[0]} login)?" if "push" in command else ""
        raise DeployError(f"`{' '.join(command[:3])}` ended with {done.returncode}; its output is above.{hint}")


def environment_without_key() -> dict[str, str]:
    """The shell's without the API key: a build has no use for it, and might keep what it sees."""
    kept = {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}
    return kept | {"DOCKER_BUILDKIT": "1"}
