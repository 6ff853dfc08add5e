"""Small files that are replaced in one move: whoever reads one finds the old content or the new one, never a part.

Workers that share a disk write the same names. Knows nothing of what the files hold.
"""

import os
import tempfile
from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Put `data` in the file's place; its folder is made where it is missing.

    Raises `OSError` where the disk does not take it, and leaves the old file, and no part of the new one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            os.replace(part.name, file)
        except OSError:
            os.unlink(part.name)
            raise
