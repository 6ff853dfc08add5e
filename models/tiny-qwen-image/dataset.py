"""Random tasks of the world for training: what is asked for, and the scenes before and after.

Knows scenes and wordings. Knows nothing about tensors or models. Held-out combinations of colour, shape and
background never appear in a picture or a prompt of training.
"""

from dataclasses import dataclass

from . import prompts, world
from .world import Scene

MISTAKEN = 0.25  # share of the captions with a wrong attribute


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
    """A prompt for `scene`, and what it leaves open: (prompt, asked) with asked a dict of attributes or None."""
    size = scene.size if rng.random() < 0.9 else None
    position = scene.position if rng.random() < 0.9 else None
    prompt = prompts.scene_prompt(rng, scene.colour, scene.shape, scene.background, size, position)
    asked = {"colour": scene.colour, "shape": scene.shape, "background": scene.background}
    return prompt, {**asked, "size": size, "position": position}


def caption(rng, scene):
    """A prompt to learn to draw from: of one in four, one attribute is wrong.

    The captions of the web are no better. It is what guidance is for: without it the model draws what such captions
    come with, right about as often as they are; with it, what tells this caption from the others.
    """
    if rng.random() < MISTAKEN:
        scene = _mistaken(rng, scene)
    return describe(rng, scene)[0]


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
    target = {"background": after.background, "recolour": after.colour, "reshape": after.shape, "remove": None}
    prompt = prompts.edit_prompt(rng, operation, target[operation], before.shape)
    return Edit(operation, target[operation], prompt, before, after)


def _mistaken(rng, scene):
    while True:
        attribute = rng.choice(("colour", "shape", "background", "size", "position"))
        wrong = scene.edited(**{attribute: getattr(training_scene(rng), attribute)})
        told_apart = wrong.colour != wrong.background and getattr(wrong, attribute) != getattr(scene, attribute)
        if told_apart and not world.held_out(wrong.colour, wrong.shape, wrong.background):
            return wrong


def _change(rng, scene, operation):
    free = [c for c in prompts.COLOURS if c not in (scene.colour, scene.background)]
    if operation == "background":
        return scene.edited(background=rng.choice(free))
    if operation == "recolour":
        return scene.edited(colour=rng.choice(free))
    if operation == "reshape":
        return scene.edited(shape=rng.choice([s for s in prompts.SHAPES if s != scene.shape]))
    return scene.edited(shape=None)
