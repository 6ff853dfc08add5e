"""A real picture of 16 megapixels: a wallpaper of Debian's package gnome-backgrounds, fetched when a test asks for it.

The package's copyright file names the licence, CC-BY-SA-3.0. Nothing of it is part of this repository.
"""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGE, NAME = "gnome-backgrounds", "usr/share/backgrounds/gnome/adwaita-l.webp"
SECONDS = 120


@functools.cache
def wallpaper() -> bytes | str:
    """The file, or why there is none."""
    installed = Path("/") / NAME
    if installed.exists():
        return installed.read_bytes()
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "a wallpaper is fetched with Debian's apt-get and dpkg-deb, which are not installed"
    with tempfile.TemporaryDirectory() as folder:
        command = ["apt-get", "download", "-q", PACKAGE]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"apt-get download {PACKAGE} has not ended in {SECONDS} seconds"
        packages = list(Path(folder).glob("*.deb"))
        if done.returncode or not packages:
            return f"apt-get download {PACKAGE} has failed: {done.stderr.strip()[-200:]}"
        subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, capture_output=True)
        picture = Path(folder, NAME)
        return picture.read_bytes() if picture.exists() else f"this release of {PACKAGE} has no {NAME}"
