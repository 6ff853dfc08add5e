"""The size of a picture's layers, the layers laid over each other, and stand-ins for them.

Layers are RGBA pictures of one size, the bottom one first. Knows nothing of torch or of the pipelines.
"""

from PIL import Image

Size = tuple[int, int]

SIDE_MULTIPLE = 32  # pixels to which diffusers' layered pipeline rounds a side, whatever its VAE


def layer_size(source: Size, resolution: int, multiple: int) -> Size:
    """The size in which the layered pipeline draws a picture: `calculate_dimensions` of diffusers, word for number.

    `resolution`: the side of a square of as many pixels; `multiple`: of the checkpoint's sides, at most 32.
    """
    ratio = source[0] / source[1]
    width = (resolution * resolution * ratio) ** 0.5
    sides = (round(side / SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (width, width / ratio))
    width, height = (side // multiple * multiple for side in sides)
    return int(width), int(height)


def recomposed(layers: list[Image.Image]) -> Image.Image:
    """The layers laid over each other on white, RGB."""
    whole = Image.new("RGBA", layers[0].size, "white")
    for layer in layers:
        whole.alpha_composite(layer)
    return whole.convert("RGB")


def stand_in_layers(picture: Image.Image, count: int) -> list[Image.Image]:
    """A stand-in at the bottom, and empty layers over it: laid over each other they give the stand-in."""
    empty = [Image.new("RGBA", picture.size, (0, 0, 0, 0)) for _ in range(count - 1)]
    return [picture.convert("RGBA"), *empty]
