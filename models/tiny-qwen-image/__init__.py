"""A tiny Qwen-Image: checkpoints of the real diffusers classes that draw and edit a small world of shapes."""
