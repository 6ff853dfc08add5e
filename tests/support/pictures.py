"""Pictures as the tests look at them."""

from qwen_worker.pictures.images import as_rgb, flatten, load_picture


def decode_picture(data, label, warn=lambda sentence: None):
    """RGB of the file's own numbers, on white."""
    return as_rgb(flatten(load_picture(data, label, warn)))
