"""Control pictures as the ControlNet gets them: of the drawing's size, and as edges where a job asks for that.

OpenCV finds the edges, and is optional. It and not scikit-image: its Canny is the one whose edges the published
ControlNets learnt from. It takes 7 ms for 1024 x 1024 pixels, 0.07 s to import, 34 MB of RAM and 153 MB of disk, and
scikit-image 150 ms, 0.5 s, 80 MB and 182 MB. Knows nothing of ControlNets, nor of where the pictures come from.
"""

import importlib.util
from collections.abc import Sequence

from PIL import Image, ImageOps

from ..errors import BeyondSchema, InvalidInput
from ..jobs.control import Control
from ..jobs.values import Warn

LOW, HIGH = 100, 200  # thresholds of the gradient, as in the example of InstantX's union
SAME_ASPECT = 0.01  # relative difference up to which two aspects are the same


def prepare(
    pictures: Sequence[Image.Image], controls: Sequence[Control], size: tuple[int, int], warn: Warn
) -> tuple[Image.Image, ...]:
    """RGB pictures of `size` pixels: scaled to cover it and cut at their middle, then made edges of where asked.

    Edges are looked for at the drawing's size: scaled afterwards, their lines would not be one pixel wide.
    """
    return tuple(prepare_one(picture, control, size, warn) for picture, control in zip(pictures, controls, strict=True))


def prepare_one(picture: Image.Image, control: Control, size: tuple[int, int], warn: Warn) -> Image.Image:
    own, asked = picture.width / picture.height, size[0] / size[1]
    if abs(own / asked - 1) > SAME_ASPECT:
        sides = "at left and right" if own > asked else "at top and bottom"
        warn(
            f"{control.label} is {picture.width}x{picture.height} and the picture {size[0]}x{size[1]}: it is scaled to "
            f"cover the picture, and cut {sides}"
        )
    fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS) if picture.size != size else picture
    return canny(fitted) if control.preprocess == "canny" else fitted


def canny(picture: Image.Image) -> Image.Image:
    """White lines of one pixel on black, RGB, at the picture's size. The strongest of the three channels decides."""
    import cv2
    import numpy as np

    edges = cv2.Canny(np.asarray(picture.convert("RGB")), LOW, HIGH)
    return Image.fromarray(edges).convert("RGB")


def require_preprocessor(controls: Sequence[Control]) -> None:
    """Refuse a job whose edges nothing here can find. Raises `InvalidInput`."""
    if any(control.preprocess == "canny" for control in controls) and not importlib.util.find_spec("cv2"):
        raise InvalidInput(
            "control_preprocess 'canny' needs the package opencv-python-headless, which this worker does not have: "
            "send the edges as control_image",
            BeyondSchema.ENDPOINT,
        )
