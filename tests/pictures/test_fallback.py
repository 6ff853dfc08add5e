"""The stand-ins keep size and repeatability, follow the prompt, and cost milliseconds' worth of work."""

import pytest
from PIL import Image, ImageChops

from qwen_worker.jobs.parsing import parse
from qwen_worker.pictures import fallback
from qwen_worker.pictures.inputs import Canvas


def request(**fields):
    return parse({"prompt": "a cat", "seed": 1, **fields}, "job")


def differ(a, b):
    return ImageChops.difference(a, b).getbbox() is not None


@pytest.mark.parametrize("size", [(256, 2048), (512, 512), (2048, 256)])
def test_a_gradient_has_the_size_asked_for_and_is_repeatable(size):
    first, again = (fallback.draw(request(), Canvas([], None, size))[0] for _ in range(2))
    assert (first.size, first.mode) == (size, "RGB") and not differ(first, again)


def test_the_prompt_is_drawn_and_the_seed_changes_the_picture():
    blank, cat = (fallback.gradient(prompt, (512, 512), 1) for prompt in (" ", "a cat"))
    assert differ(blank, cat)
    one, two = fallback.draw(request(num_images=2), Canvas([], None, (512, 512)))
    assert differ(one, two)
    assert not differ(two, fallback.draw(request(seed=2), Canvas([], None, (512, 512)))[0])


def test_a_prompt_of_any_characters_is_drawn():
    for prompt in ("x" * 2000, "红色的圆" * 100, "\n\t\0", "🦆 {}%s"):
        fallback.gradient(prompt, (256, 256), 1)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Blur the background", "blur"),
        ("make it black and white", "grey"),
        ("a vintage look", "sepia"),
        ("at NIGHT", "dark"),
        ("brighter", "bright"),
        ("put a hat on it", "tint"),
        ("make it bold", "tint"),
        ("a delightful garden", "tint"),
    ],
)
def test_the_prompt_chooses_the_filter(prompt, name):
    assert fallback.filter_name(prompt) == name


@pytest.mark.parametrize("name", list(fallback.FILTERS))
def test_every_filter_changes_the_picture_and_keeps_its_form(name):
    picture = Image.effect_noise((64, 48), 60).convert("RGB")
    picture.paste("orange", (0, 0, 32, 48))
    found = fallback.FILTERS[name](picture)
    assert (found.size, found.mode) == (picture.size, "RGB") and differ(found, picture)


def test_every_word_names_a_filter():
    assert set(fallback.FILTER_WORDS.values()) <= set(fallback.FILTERS)


def test_outside_the_mask_nothing_changes():
    source = Image.effect_noise((256, 256), 60).convert("RGB")
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (64, 64, 192, 192))
    found = fallback.draw(request(image="aGk=", prompt="invert"), Canvas([source], mask, source.size))[0]
    assert ImageChops.difference(found, source).getbbox() == (64, 64, 192, 192)
