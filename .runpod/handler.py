"""The Hub asks for a file of this name; the worker is `runpod_handler.py` at the top of the repository."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))  # where the worker's package is: `run_path` does not look beside the file
    runpy.run_path(str(root / "runpod_handler.py"), run_name="__main__")
