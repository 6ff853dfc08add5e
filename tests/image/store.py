"""buildah with a store of its own, which goes with its folder."""

import os
import shutil
import subprocess
from pathlib import Path


class Store:
    """Layers by overlay mounts where the kernel gives them here, else as whole copies (vfs)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.driver = "overlay" if overlays(folder) else "vfs"
        conf = folder / "storage.conf"
        conf.write_text(
            f'[storage]\ndriver = "{self.driver}"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        # chroot: no container runtime is needed, nor namespaces that a sandbox may refuse.
        self.env = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(conf),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(folder),  # also of the cache mounts
        }

    def run(self, *arguments: object) -> str:
        """Raises `CalledProcessError`; what goes wrong is on the terminal."""
        command = ["buildah", *map(str, arguments)]
        return subprocess.run(command, env=self.env, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def has(self, image: str) -> bool:
        return subprocess.run(["buildah", "inspect", image], env=self.env, capture_output=True).returncode == 0

    def close(self, keep: bool) -> None:
        """Let go of what a build or a container that failed has left mounted; then the folder goes, if it may."""
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([one for one in mounted if one.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", place], check=True)
        if not keep:
            shutil.rmtree(self.folder)


def overlays(folder: Path) -> bool:
    parts = [folder / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    lower, upper, work, merged = parts
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", str(merged)], check=True)
    return mounted.returncode == 0


def make_base(store: Store, image: str, folder: Path, mirror: str) -> None:
    """A Debian with Python, from a mirror of Debian's packages: the Dockerfile's own base is on a registry."""
    packages = "python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder), mirror]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for file in (folder / "var/cache/apt/archives").glob("*.deb"):
        file.unlink()
    container = store.run("from", "scratch")
    store.run("add", container, folder, "/")
    store.run("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    store.run("commit", "--rm", container, image)
    shutil.rmtree(folder)
