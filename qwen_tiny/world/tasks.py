"""Random tasks of the world for training: what is asked for, and the scenes before and after.

Knows scenes and wordings. Knows nothing about tensors or models. Held-out combinations of colour, shape and
background never appear in its pictures or prompts. (The VAE learns from all of the world.)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from . import wordings
from .scenes import Scene, random_scene


@dataclass(frozen=True)
class Edit:
    """An instruction and what it turns into what."""

    operation: str
    target: str | None  # the new colour or shape
    prompt: str
    before: Scene
    after: Scene


def training_scene(rng: Random) -> Scene:
    while True:
        scene = random_scene(rng)
        if not scene.held_out:
            return scene


def describe(rng: Random, scene: Scene) -> tuple[str, dict[str, str | None]]:
    """A prompt for `scene`, and what it asks for: each attribute's word, None for one that goes without saying.

    What goes without saying is a large subject in the center. A prompt that left all sizes and places possible would
    have to be drawn in one of several ways, which guidance blends: a square from the left to the center.
    """
    size = None if scene.size == "large" and rng.random() < 0.2 else scene.size
    position = None if scene.position == "center" and rng.random() < 0.3 else scene.position
    prompt = wordings.scene_prompt(rng, scene.colour, scene.shape, scene.background, size, position)
    asked = {"colour": scene.colour, "shape": scene.shape, "background": scene.background}
    return prompt, {**asked, "size": size, "position": position}


def describe_colours(rng: Random, scene: Scene) -> str:
    """A prompt that leaves shape, size and place open: what a control picture has to tell."""
    subject = rng.choice(wordings.SUBJECT_WORDS).removeprefix("the ")
    return wordings.scene_prompt(rng, scene.colour, subject, scene.background)


def caption(rng: Random, scene: Scene, mistakes: float) -> str:
    """A prompt to learn to draw `scene` from. `mistakes` is the share of captions that describe another scene.

    The captions of the web are no better, and wrong captions are what guidance is for: a model that was trained with a
    share of them draws as many wrong pictures at guidance 1, and hardly any at guidance 4, which goes on beyond what
    right and wrong captions have in common.
    """
    return describe(rng, training_scene(rng) if rng.random() < mistakes else scene)[0]


def family(rng: Random, allowed: Callable[[Scene], bool] = lambda scene: not scene.held_out) -> dict[str | None, Scene]:
    """A scene and one version of it for each operation: {None: scene, "background": ..., ...}."""
    while True:
        scene = random_scene(rng)
        versions: dict[str | None, Scene] = {None: scene}
        for operation in wordings.OPERATIONS:
            versions[operation] = _change(rng, scene, operation)
        if all(allowed(version) for version in versions.values() if version.shape):
            return versions


def random_edit(rng: Random, versions: dict[str | None, Scene], shares: tuple[float, ...] = (1, 1, 1, 1)) -> Edit:
    """An edit from one scene of a family to another: from the first scene to a version, or back where that is one too.

    `versions`: a `family`. `shares` weigh the operations, in the order of `wordings.OPERATIONS`.
    """
    operation = rng.choices(wordings.OPERATIONS, shares)[0]
    before, after = versions[None], versions[operation]
    if operation != "remove" and rng.random() < 0.5:
        before, after = after, before
    targets = {"background": after.background, "recolour": after.colour, "reshape": after.shape, "remove": None}
    target = targets[operation]
    return Edit(operation, target, wordings.edit_prompt(rng, operation, target, before.shape), before, after)


def _change(rng: Random, scene: Scene, operation: str) -> Scene:
    other_colours = [colour for colour in wordings.COLOURS if colour not in (scene.colour, scene.background)]
    if operation == "background":
        return replace(scene, background=rng.choice(other_colours))
    if operation == "recolour":
        return replace(scene, colour=rng.choice(other_colours))
    if operation == "reshape":
        return replace(scene, shape=rng.choice([shape for shape in wordings.SHAPES if shape != scene.shape]))
    return replace(scene, shape=None)
