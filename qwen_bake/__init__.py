"""The weights that are laid into an image: each distinct file once, in layers that registries take.

Runs while the image is built; needs `huggingface_hub` and, of the worker, only two small modules.
"""
