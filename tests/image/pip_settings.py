"""This machine's settings of pip, handed through a build: mounted while it runs, in no layer."""

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

INSIDE = "/run/pip"


def volumes(folder: Path) -> list[str]:
    """The mounts, as buildah's `--volume` takes them, of one pip.conf and of all that it names on this disk."""
    conf, mounts = configparser.RawConfigParser(), {}
    conf.add_section("global")
    for name, value in settings().items():
        conf.set("global", name, re.sub(r"(file://)?(/[^\s]+)", lambda found: inside(found, mounts), value))
    with (folder / "pip.conf").open("w") as stream:
        conf.write(stream)
    return [f"{source}:{target}:ro" for source, target in {str(folder / "pip.conf"): "/etc/pip.conf", **mounts}.items()]


def settings() -> dict[str, str]:
    """Of all its files and of the environment, which wins."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = {}
    for line in sorted(told.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.split(".", 1)[1]] = ast.literal_eval(value)
    return found


def inside(found: re.Match, mounts: dict[str, str]) -> str:
    """A path as the build will see it; an index's files lie beside its pages."""
    scheme, path = found.group(1) or "", found.group(2).rstrip("/")
    if not os.path.exists(path):
        return found.group(0)
    source = os.path.dirname(path) if scheme else path
    target = mounts.setdefault(source, f"{INSIDE}/{len(mounts)}")
    return scheme + target + path.removeprefix(source)
