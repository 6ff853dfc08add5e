"""The words of the tiny world: what can be drawn or edited, and how people ask for it.

Pure text: knows nothing about pixels, tensors or models. A wording leaves out what the scene leaves open (`None`).
"""

from random import Random

from qwen_worker.jobs.request import BACKGROUND_INSTRUCTION

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "diamond")
SIZES = ("small", "large")
POSITIONS = ("left", "center", "right")
OPERATIONS = ("background", "recolour", "reshape", "remove")

# How each word may be said; the first is the canonical one.
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
POSITION_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "center": ("in the center", "in the middle", "in the centre"),
    "right": ("on the right", "on the right side", "at the right"),
}
SUBJECT_WORDS = ("the subject", "the shape", "the object")

BACKGROUND_PHRASES = (
    "{c}", "a {c} background", "plain {c}", "a plain {c} background", "a plain {c} wall", "a {c} wall",
    "a solid {c} color", "a {c} studio backdrop", "the color {c}",
)  # fmt: skip

SCENE_WORDINGS = (
    "a {subject} {place}, on a {bg} background",
    "a {subject} {place} on a {bg} background",
    "{subject}, {place}, {bg} background",
    "on a {bg} background, a {subject} {place}",
    "{bg} background with a {subject} {place}",
    "a picture of a {subject} {place}, {bg} background",
    "a {subject} {place} against a {bg} background",
    "draw a {subject} {place}, the background is {bg}",
    "an image of a {subject} {place} over a plain {bg} background",
)
BACKGROUND_WORDINGS = (
    "make the background {c}", "change the background to {c}", "turn the background {c}", "{c} background",
    "put it on a {c} background", "set the background color to {c}", "give it a {c} background",
    "change the background color to {c}", "paint the background {c}",
)  # fmt: skip
RECOLOUR_WORDINGS = (
    "make {s} {c}", "paint {s} {c}", "turn {s} {c}", "change {s} to {c}", "change the color of {s} to {c}",
    "change the colour of {s} to {c}", "recolor {s} {c}", "color {s} {c}",
)  # fmt: skip
RESHAPE_WORDINGS = (
    "turn {s} into a {shape}", "change {s} into a {shape}", "replace {s} with a {shape}", "make {s} a {shape}",
    "transform {s} into a {shape}", "change {s} to a {shape}",
)  # fmt: skip
REMOVE_WORDINGS = (
    "remove {s}", "delete {s}", "erase {s}", "take {s} away", "remove {s} from the image", "get rid of {s}",
)  # fmt: skip


def scene_prompt(
    rng: Random, colour: str, shape: str, background: str, size: str | None = None, position: str | None = None
) -> str:
    """One way of asking for a scene. `size` and `position` may be left open."""
    words = [rng.choice(SIZE_WORDS[size])] if size else []
    subject = " ".join([*words, colour, shape])
    place = rng.choice(POSITION_WORDS[position]) if position else ""
    text = rng.choice(SCENE_WORDINGS).format(subject=subject, place=place, bg=background)
    return _vary(rng, " ".join(text.split()).replace(" ,", ","))  # an empty place leaves two spaces


def edit_prompt(rng: Random, operation: str, target: str | None, shape: str) -> str:
    """One way of asking for an edit: `target` is the new colour or shape, `shape` names the subject that is there."""
    subject = rng.choice((f"the {shape}", f"the {shape}", *SUBJECT_WORDS, "it"))
    if operation == "background":
        if rng.random() < 0.4:
            return BACKGROUND_INSTRUCTION.format(prompt=rng.choice(BACKGROUND_PHRASES).format(c=target))
        text = rng.choice(BACKGROUND_WORDINGS).format(c=target)
    elif operation == "recolour":
        text = rng.choice(RECOLOUR_WORDINGS).format(s=subject, c=target)
    elif operation == "reshape":
        text = rng.choice(RESHAPE_WORDINGS).format(s=subject, shape=target)
    else:
        text = rng.choice(REMOVE_WORDINGS).format(s=subject)
    return _vary(rng, text)


def corpus() -> list[str]:
    """Every wording once, and every word: trained on these lines, the tokenizer makes one token of each word."""
    words = [*COLOURS, *SHAPES, "the", "it", "a", "an", "and", "image", "picture"]
    words += [word for group in (*SIZE_WORDS.values(), *POSITION_WORDS.values(), SUBJECT_WORDS) for word in group]
    wordings = [*SCENE_WORDINGS, *BACKGROUND_WORDINGS, *RECOLOUR_WORDINGS, *RESHAPE_WORDINGS, *REMOVE_WORDINGS]
    blank = {"subject": "red circle", "place": "on the left", "bg": "blue", "c": "red", "s": "it", "shape": "square"}
    lines = [wording.format(**blank) for wording in wordings] + [
        phrase.format(c="red") for phrase in BACKGROUND_PHRASES
    ]
    lines += words + [f"x {word}" for word in words] + [BACKGROUND_INSTRUCTION.format(prompt="green")]
    return lines + [line[0].upper() + line[1:] + "." for line in lines]


def _vary(rng: Random, text: str) -> str:
    """Sometimes a capital, sometimes a full stop, as people write."""
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.2 else text
