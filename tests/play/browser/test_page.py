"""A visitor in Chromium draws, watches, stops, paints a mask, edits and goes back, on a real worker."""

import re
import signal

import numpy as np
import psutil
import pytest

from ...conftest import ROOT
from ...support.patience import wait_until

CIRCLE = "a large red circle in the center, on a blue background"
AXE = ROOT / "tests/play/browser/node_modules/axe-core/axe.min.js"

# Faults of the library's own parts: by axe's rule, words of the elements that have it. What we add has none.
LIBRARY_FAULTS = {
    "label-content-name-mismatch": ("upload-container", "thumbnail-item"),  # a name that is not the text on the button
}


@pytest.fixture
def visitor(play, open_page):
    return open_page(play.address)


def middle(image):
    return np.asarray(image)[image.height // 2, image.width // 2].astype(int)


def is_colour(pixel, name):
    wanted = {"red": (220, 40, 40), "blue": (40, 80, 220)}[name]
    return np.abs(pixel - wanted).max() < 60


def test_a_prompt_becomes_a_picture_and_its_steps_are_seen(visitor):
    visitor.draw(CIRCLE, steps="40", seed="7")
    texts = visitor.wait("Done", "Error")
    assert any(re.search(r"Step \d+ of 40", text) for text in texts), texts
    image = visitor.image()
    assert image.size == (512, 512)
    assert is_colour(middle(image), "red") and is_colour(np.asarray(image)[5, 5].astype(int), "blue")
    facts = visitor.page.inner_text("#play-facts")
    assert re.search(r"512 × 512 · 40 steps · guidance 4 · seed 7 · quality · [\d.]+ s · \$0\.\d+", facts)


def test_a_stop_ends_the_drawing_within_a_step(visitor):
    visitor.page.click("#play-size input")
    visitor.page.get_by_role("option", name="full size").click()
    visitor.draw(CIRCLE, steps="100")
    visitor.wait("Step ")
    wait_until(lambda: visitor.page.is_visible("#play-picture img[alt='The unfinished picture']"))
    visitor.page.click("#play-stop")
    text = visitor.wait("Stopped", "Done", "Error")[-1]
    step = int(re.search(r"Stopped at step (\d+) of 100", text)[1])
    assert step < 90
    wait_until(lambda: visitor.page.is_enabled("#play-draw"))
    visitor.draw(CIRCLE, steps="4")
    assert "Done" in visitor.wait("Done", "Error")[-1]


def test_only_what_is_painted_on_is_drawn_anew(visitor):
    visitor.draw(CIRCLE, steps="20", seed="7")
    visitor.wait("Done", "Error")
    before = np.asarray(visitor.image()).astype(int)
    visitor.page.click("#play-reuse")
    visitor.page.wait_for_selector("#play-pictures img")
    paint(visitor)
    visitor.shoot("mask")
    visitor.draw("paint the circle yellow", steps="8")
    assert "Done" in visitor.wait("Done", "Error")[-1]
    after = np.asarray(visitor.image()).astype(int)
    assert after.shape == before.shape
    changed = np.abs(after - before).max(axis=2) > 30
    assert changed[128:384, 128:384].mean() > 0.05, "the painted part is as it was"
    assert not changed[:100].any() and not changed[:, :100].any(), "what was not painted on has changed"
    visitor.page.click("#play-code button >> nth=0")
    assert '"mask_image"' in visitor.page.inner_text("#play-curl")


def paint(visitor):
    """A stroke through the middle of the first picture."""
    visitor.page.click("#play-mask button >> nth=0")
    canvas = visitor.page.locator("#play-canvas canvas").first
    canvas.wait_for()
    visitor.page.wait_for_timeout(1500)  # the library lays the picture out and tells nobody when it has
    canvas.scroll_into_view_if_needed()
    box, mouse = canvas.bounding_box(), visitor.page.mouse
    mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.45)
    mouse.down()
    for part in range(10):
        mouse.move(box["x"] + box["width"] * (0.45 + part / 100), box["y"] + box["height"] * (0.45 + part / 100))
    mouse.up()
    visitor.page.wait_for_timeout(500)


def test_an_entry_of_the_history_fills_the_form(visitor):
    first = "a small green square on the left, on a white background"
    visitor.draw(first, steps="5", seed="11")
    visitor.wait("Done", "Error")
    visitor.draw(CIRCLE, steps="4", seed="12")
    visitor.wait("Done", "Error")
    visitor.page.locator("#play-history button").filter(has=visitor.page.locator("img")).nth(1).click()
    wait_until(lambda: visitor.page.input_value("#play-prompt textarea") == first)
    assert visitor.page.input_value("#play-steps input, #play-steps textarea") == "5"
    wait_until(lambda: "seed 11" in visitor.page.inner_text("#play-facts"))


def test_a_page_that_is_loaded_again_picks_its_job_up(visitor):
    visitor.page.click("#play-size input")
    visitor.page.get_by_role("option", name="full size").click()
    visitor.draw(CIRCLE, steps="60")
    visitor.wait("Step ")
    visitor.open()
    texts = visitor.wait("Done", "Error")
    assert any("of 60" in text for text in texts), texts
    assert visitor.page.input_value("#play-prompt textarea") == CIRCLE
    assert visitor.page.locator("#play-history img").count() == 1
    # The library reports the connections that a reload cuts, while it goes.
    cut = ("BodyStreamBuffer was aborted", "Connection errored out", "network error", "Failed to fetch")
    visitor.faults[:] = [fault for fault in visitor.faults if not any(words in fault for words in cut)]


def test_two_pages_draw_at_once(play, open_page):
    pages = [open_page(play.address) for _ in range(2)]
    for number, page in enumerate(pages):
        page.draw(CIRCLE, steps="20", seed=str(number))
    for number, page in enumerate(pages):
        assert "Done" in page.wait("Done", "Error")[-1]
        assert f"seed {number} " in page.page.inner_text("#play-facts")


def test_a_worker_that_is_killed_is_told_and_the_next_one_draws(play, visitor):
    visitor.page.click("#play-size input")
    visitor.page.get_by_role("option", name="full size").click()
    visitor.draw(CIRCLE, steps="60")
    visitor.wait("Step ")
    for process in psutil.Process(play.process.pid).children(recursive=True):
        if any("runpod_handler" in part for part in process.cmdline()):
            process.send_signal(signal.SIGKILL)
    texts = visitor.wait("Done", "Error")
    assert any("The worker that had this job is gone" in text for text in texts), texts
    assert "Done" in texts[-1]


def test_the_keyboard_is_enough(visitor):
    visitor.page.focus("#play-prompt textarea")
    visitor.page.keyboard.type(CIRCLE)
    visitor.page.keyboard.press("Shift+Enter")
    visitor.wait("Step ")
    visitor.page.keyboard.press("Tab")
    for _ in range(5):
        if visitor.page.evaluate("document.activeElement.id") == "play-stop":
            break
        visitor.page.keyboard.press("Tab")
    visitor.page.keyboard.press("Enter")
    assert "Stopped" in visitor.wait("Stopped", "Done", "Error")[-1]


@pytest.mark.parametrize("name, size, scheme", [
    ("wide", (1280, 900), "light"), ("narrow", (360, 740), "light"), ("dark", (1280, 900), "dark"),
])  # fmt: skip
def test_the_page_is_seen_and_used_by_everybody(play, open_page, name, size, scheme):
    visitor = open_page(play.address, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    visitor.draw(CIRCLE, steps="20", seed="7")
    visitor.wait("Done", "Error")
    visitor.page.wait_for_function("document.querySelector('#play-picture img')?.complete")
    visitor.shoot(name)
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= size[0], f"the page is {width} pixels wide"
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make test-play")
    visitor.page.add_script_tag(content=AXE.read_text())
    found = visitor.page.evaluate("axe.run()")["violations"]
    ours = [
        (fault["id"], node["html"][:200])
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
        if not any(words in node["html"] for words in LIBRARY_FAULTS.get(fault["id"], ()))
    ]
    assert not ours
