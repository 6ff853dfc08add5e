"""Makes and measures `models/tiny-qwen-image`: checkpoints of the real diffusers classes that draw a world of shapes.

`python -m qwen_tiny.train` makes them from nothing, `python -m qwen_tiny.evaluate` scores them. Of the worker the words
of an edit's instruction alone are used.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parents[1] / "models/tiny-qwen-image"
LORA = Path("few-step/tiny-qwen-image-4steps.safetensors")  # of few steps, in the folder of the checkpoint
CONTROL = Path("control")  # the ControlNet for edges, likewise
