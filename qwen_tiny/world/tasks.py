"""Random tasks of the world for training: what is asked for, and the scenes before and after.

Knows scenes and wordings. Knows nothing about tensors or models. Held-out combinations of colour, shape and
background never appear in its pictures or prompts. (The VAE learns from all of the world.)
"""

from dataclasses import dataclass

from . import scenes as world
from . import wordings as prompts
from .scenes import Scene

MISTAKEN = 0.35  # share of the last stage's prompts that belong to another picture


@dataclass(frozen=True)
class Edit:
    """An instruction and what it turns into what."""

    operation: str
    target: str | None  # the new colour or shape
    prompt: str
    before: Scene
    after: Scene


def training_scene(rng):
    while True:
        scene = world.scene(rng)
        if not world.held_out(scene.colour, scene.shape, scene.background):
            return scene


def describe(rng, scene):
    """A prompt for `scene`, and what it says: (prompt, asked) with asked a dict of attributes or None.

    What goes without saying is a large subject in the center. A prompt that left all sizes and places possible would
    have to be drawn in one of several ways, which guidance blends: a square from the left to the center.
    """
    size = None if scene.size == "large" and rng.random() < 0.2 else scene.size
    position = None if scene.position == "center" and rng.random() < 0.3 else scene.position
    prompt = prompts.scene_prompt(rng, scene.colour, scene.shape, scene.background, size, position)
    asked = {"colour": scene.colour, "shape": scene.shape, "background": scene.background}
    return prompt, {**asked, "size": size, "position": position}


def caption(rng, scene, mistakes):
    """A prompt to learn to draw from; in this share of them it is another picture's.

    The captions of the web are no better, and it is what guidance is for: a model that has met a share of mistakes
    draws as many at guidance 1, and hardly any at guidance 4, which goes on beyond what both captions have in common.
    """
    return describe(rng, training_scene(rng) if rng.random() < mistakes else scene)[0]


def family(rng, allowed=lambda scene: not world.held_out(scene.colour, scene.shape, scene.background)):
    """A scene and one version of it for each operation: {None: scene, "background": ..., ...}."""
    while True:
        scene = world.scene(rng)
        versions = {None: scene}
        for operation in prompts.OPERATIONS:
            versions[operation] = _change(rng, scene, operation)
        if all(allowed(version) for version in versions.values() if version.shape):
            return versions


def edit(rng, versions, shares=(1, 1, 1, 1)):
    """One random edit between two members of a family; also the way back, where it is an edit too.

    `shares` weigh the operations, in the order of `prompts.OPERATIONS`.
    """
    operation = rng.choices(prompts.OPERATIONS, shares)[0]
    before, after = versions[None], versions[operation]
    if operation != "remove" and rng.random() < 0.5:
        before, after = after, before
    named = {"background": after.background, "recolour": after.colour, "reshape": after.shape, "remove": None}
    target = named[operation]
    return Edit(operation, target, prompts.edit_prompt(rng, operation, target, before.shape), before, after)


def _change(rng, scene, operation):
    free = [c for c in prompts.COLOURS if c not in (scene.colour, scene.background)]
    if operation == "background":
        return scene.edited(background=rng.choice(free))
    if operation == "recolour":
        return scene.edited(colour=rng.choice(free))
    if operation == "reshape":
        return scene.edited(shape=rng.choice([s for s in prompts.SHAPES if s != scene.shape]))
    return scene.edited(shape=None)
