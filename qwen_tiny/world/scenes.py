"""Draws the tiny world: one shape on a plain background, antialiased, at any size.

Knows scenes and pixels (numpy). Knows nothing about words, models or training.
Lengths are fractions of the picture's shorter side, places fractions of width and height.
"""

from dataclasses import dataclass
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .wordings import COLOURS, POSITIONS, SHAPES, SIZES

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

RGB = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
RADIUS = {"small": 0.13, "large": 0.23}
CENTER = {"left": 0.25, "center": 0.5, "right": 0.75}
JITTER = 0.008  # how far a scene may be from its nominal place and size: two scenes of the same words differ


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `shape` None is a bare background."""

    colour: str
    shape: str | None
    background: str
    size: str
    position: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2

    @property
    def held_out(self) -> bool:
        """Whether its combination is kept for evaluation: one in eight, some of every colour, shape and background."""
        colour, background = COLOURS.index(self.colour), COLOURS.index(self.background)
        return (colour + 3 * SHAPES.index(self.shape) + 5 * background) % 8 == 0


def random_scene(rng: Random, **fixed: str) -> Scene:
    """A random scene; `fixed` pins attributes."""
    background = fixed.get("background") or rng.choice([c for c in COLOURS if c != fixed.get("colour")])
    colour = fixed.get("colour") or rng.choice([c for c in COLOURS if c != background])
    size = fixed.get("size") or rng.choice(SIZES)
    position = fixed.get("position") or rng.choice(POSITIONS)
    return Scene(
        colour=colour,
        shape=fixed.get("shape") or rng.choice(SHAPES),
        background=background,
        size=size,
        position=position,
        x=CENTER[position] + rng.uniform(-JITTER, JITTER),
        y=0.5 + rng.uniform(-JITTER, JITTER),
        radius=RADIUS[size] * (1 + rng.uniform(-2 * JITTER, 2 * JITTER)),
    )


def draw(scene: Scene, width: int, height: int) -> np.ndarray:
    """The scene as (height, width, 3) uint8."""
    back = np.array(RGB[scene.background], np.float32)
    front = np.array(RGB[scene.colour], np.float32)
    return np.rint(back + coverage(scene, width, height)[..., None] * (front - back)).astype(np.uint8)


def coverage(scene: Scene, width: int, height: int) -> np.ndarray:
    """How much of each pixel the subject covers: (height, width) float32 in [0, 1]."""
    if scene.shape is None:
        return np.zeros((height, width), np.float32)
    side = min(width, height)
    dx = np.arange(width, dtype=np.float32)[None] + 0.5 - scene.x * width
    dy = np.arange(height, dtype=np.float32)[:, None] + 0.5 - scene.y * height
    return np.clip(0.5 - outline_distance(scene.shape, dx, dy, scene.radius * side, np), 0, 1)


def outline_distance(shape: str, dx: Array, dy: Array, radius: float, library: ModuleType) -> Array:
    """Signed distance from a point to the shape's outline, negative inside, in the unit of `radius`.

    `dx`, `dy`: the point's place from the shape's middle, arrays of `library`, which is numpy or torch. The four shapes
    have about the same area for a radius. At corners the distance is that to the nearer side, which is all that
    antialiasing needs.
    """
    if shape == "circle":
        return (dx * dx + dy * dy) ** 0.5 - radius
    if shape == "square":
        return library.maximum(abs(dx), abs(dy)) - 0.88 * radius
    if shape == "diamond":
        return (abs(dx) + abs(dy)) * 0.5**0.5 - 0.88 * radius
    # an equilateral triangle, point up, its bounding box centred on the place
    slanted = (abs(dx) * 3**0.5 - dy) * 0.5
    return library.maximum(slanted - 0.58 * radius, dy - 1.16 * radius)
