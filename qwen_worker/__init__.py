"""The parts of the Qwen-Image worker.

The story they serve is told in `runpod_handler.py`, which nothing here imports.
"""

__version__ = "0.1.0"
