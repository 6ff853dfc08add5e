"""The weights that are laid into an image, in layers that registries take, or onto a network volume: each file once.

Runs while the image is built, or in a Pod that mounts the volume; needs `huggingface_hub` and, of the worker, only two
small modules.
"""
