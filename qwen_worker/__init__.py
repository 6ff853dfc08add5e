"""The packages of the Qwen-Image worker; `QWEN_IMPLEMENTATION.md` draws their layers.

`runpod_handler.py` is the caller of these packages, and none of them imports it.
"""

__version__ = "0.1.0"
