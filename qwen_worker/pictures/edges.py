"""Finds the edges of a picture, as a control picture for a ControlNet. Knows pictures only.

OpenCV is optional: a worker that makes no control pictures does not need it. It and not scikit-image, because its
Canny is the one that the ControlNets of the field were trained with, takes 7 ms where the other takes 150 (1024 x 1024),
and brings 153 MB instead of 182.
"""

import numpy as np
from PIL import Image

LOW, HIGH = 100, 200  # thresholds of the gradient, as in the example of InstantX's union


def canny(picture: Image.Image) -> Image.Image:
    """White lines of one pixel on black, RGB, at the picture's size. The strongest of the three channels decides."""
    import cv2

    edges = cv2.Canny(np.asarray(picture.convert("RGB")), LOW, HIGH)
    return Image.fromarray(edges).convert("RGB")
