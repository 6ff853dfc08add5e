"""Fill a network volume with checkpoints, in the layout in which the worker looks for them.

What an earlier run has fetched is compared with the hub's hashes and kept, and a file that was cut off goes on where it
ended. A model is linked when all of its files are there, so that no worker meets half of one. Knows nothing of RunPod.
"""

import errno
import threading
from collections.abc import Sequence
from pathlib import Path

from qwen_worker.errors import LoadError

from . import fetch, links, listing
from .contents import Blob, Contents, Model

SAY_EVERY = 5.0  # seconds from one line of progress to the next
MARK = "FILL"  # begins each line that is meant for whoever reads the log
FULL = (errno.ENOSPC, errno.EDQUOT)  # network volumes refuse by quota


def fill(names: Sequence[str], root: Path, token: str | None) -> str:
    """Fetch the models to `root` and link them: what was done, in words. Raises `LoadError`.

    All blobs lie in one folder, so that a model that is added later finds the files that it shares with the others.
    """
    models: list[Model] = []
    blobs: dict[str, Blob] = {}
    for name in names:
        model, files = listing.look_up(name, token)
        models.append(model)
        blobs |= {blob.digest: blob for blob in files}
    settled = Contents(False, models, blobs, [list(blobs)])
    try:
        fetch_all(settled, root, token)
        for model in models:
            links.link(settled, model, root)
    except OSError as error:
        words = "the volume is full" if error.errno in FULL else f"the volume cannot be written ({error.strerror})"
        raise LoadError(words) from None
    size = sum(blob.size for blob in blobs.values())
    commits = ", ".join(f"{model.hub_id} at {model.commit[:12]}" for model in models)
    return f"{len(blobs)} files, {size} bytes, every hash as the hub states it: {commits}"


def fetch_all(settled: Contents, root: Path, token: str | None) -> None:
    """Fetch every blob, with a line of progress each few seconds. Raises `LoadError` and `OSError`."""
    folder, partial = links.layer_folder(root, 0), root / "partial"
    for each in (folder, partial):
        each.mkdir(parents=True, exist_ok=True)
    over = threading.Event()
    done: list[Blob] = []
    total = sum(blob.size for blob in settled.blobs.values())

    def say_progress() -> None:
        while True:
            under_way = sum(file.stat().st_size for file in partial.iterdir() if file.is_file())
            say(f"{sum(blob.size for blob in done) + under_way} of {total} bytes")
            if over.wait(SAY_EVERY):
                return

    speaker = threading.Thread(target=say_progress)
    speaker.start()
    try:
        for blob in settled.blobs.values():
            fetch.fetch(blob, folder, partial, token)
            done.append(blob)
    finally:
        over.set()
        speaker.join()
    if not any(partial.iterdir()):
        partial.rmdir()


def say(text: str) -> None:
    print(f"{MARK} {text}", flush=True)
