"""The Hub asks for a file of this name; the worker is `runpod_handler.py` at the top of the repository."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "runpod_handler.py"), run_name="__main__")
