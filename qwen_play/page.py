"""What stands on the page and where: the prompt, the picture, the options. What happens is in `wiring`."""

# Gradio is in the page's own environment, and not in the one where types are checked.
# pyright: reportMissingImports=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from .form import MOST_PICTURES, PRESETS, RATIOS
from .shown import IDLE
from .uploads import BRUSH, EDITOR_SIDE, SUFFIXES

STYLE = Path(__file__).with_name("page.css")
STATE_KEY = "qwen-playground"  # in the browser's local storage: a name for the visitor, and the last job
EDIT, BACKGROUND = "edit", "background"
HEIGHT = 520  # pixels of the picture's room


@dataclass(frozen=True)
class Controls:
    """Everything on the page that a handler reads or writes. `form` is in the order of `wiring.read_form`."""

    visit: Any
    job: Any
    draw: Any
    stop: Any
    status: Any
    picture: Any
    facts: Any
    metadata: Any
    reuse: Any
    dice: Any
    history: Any
    pictures: Any
    canvas: Any
    seed: Any
    prompt: Any
    snippets: tuple[Any, ...]
    refresh: Any
    form: tuple[Any, ...]


def theme() -> Any:
    """System fonts alone: the page asks no other machine for anything."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        text_size="md",
        radius_size="md",
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
    )


def lay_out(target: str, small: bool) -> Controls:
    """Inside a `gr.Blocks`. `target` names the endpoint; `small` is whether pictures are small at first."""
    visit = gr.BrowserState(None, storage_key=STATE_KEY, secret=STATE_KEY)
    job = gr.State("")
    gr.HTML(f"<h1>Qwen-Image playground</h1><p class='play-quiet'>{target}</p>", elem_id="play-title")
    asked = prompt_and_buttons()
    with gr.Row(elem_id="play-main"):
        with gr.Column(scale=3, min_width=280):
            shown = result()
        with gr.Column(scale=2, min_width=280):
            form = options(small)
    snippets, refresh = code()
    dice = form.pop("dice")
    seen = {name: form[name] for name in ("pictures", "canvas", "seed")}
    values = (asked["prompt"], *form.values())
    return Controls(visit, job, dice=dice, snippets=snippets, refresh=refresh, form=values, **asked, **shown, **seen)


def prompt_and_buttons() -> dict[str, Any]:
    with gr.Row(elem_id="play-ask", equal_height=True):
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="What the picture shows, or how to change it",
            lines=2,
            max_lines=8,
            scale=5,
            autofocus=True,
            elem_id="play-prompt",
        )
        with gr.Column(scale=1, min_width=150, elem_id="play-buttons"):
            draw = gr.Button("Draw", variant="primary", elem_id="play-draw")
            stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="play-stop")
    return {"prompt": prompt, "draw": draw, "stop": stop}


def result() -> dict[str, Any]:
    """The picture, what is said of it, and those before it."""
    status = gr.HTML(IDLE, elem_id="play-status")
    picture = gr.Image(
        label="Picture",
        interactive=False,
        height=HEIGHT,
        type="filepath",
        buttons=["download", "fullscreen"],
        elem_id="play-picture",
        alt_text="The picture",
        show_label=False,
    )
    facts = gr.HTML(elem_id="play-facts")
    reuse = gr.Button("Edit this picture", visible=False, size="sm", elem_id="play-reuse")
    with gr.Accordion("All the worker said about it", open=False):
        metadata = gr.Code(language="json", show_label=False, interactive=False, elem_id="play-metadata")
    history = gr.Gallery(
        label="History, until the playground ends: choose one to use it again",
        columns=5,
        height=170,
        fit_columns=False,
        allow_preview=False,
        interactive=False,
        object_fit="cover",
        elem_id="play-history",
        buttons=[],
    )
    return {
        "status": status, "picture": picture, "facts": facts, "reuse": reuse, "metadata": metadata, "history": history,
    }  # fmt: skip


def options(small: bool) -> dict[str, Any]:
    """The fields but for the prompt, in the order of `wiring.read_form`."""
    found: dict[str, Any] = {}
    found["negative"] = gr.Textbox(label="Negative prompt", placeholder="What the picture should not show", lines=1)
    with gr.Row():
        found["preset"] = gr.Dropdown([("default", ""), *PRESETS], value="", label="Preset", min_width=120)
        found["ratio"] = gr.Dropdown(
            [("automatic", ""), *RATIOS], value="", label="Width : height", min_width=120, elem_id="play-ratio"
        )
        found["small"] = gr.Dropdown(
            [("full size", False), ("small", True)], value=small, label="Size", min_width=120, elem_id="play-size"
        )
    with gr.Row():
        for name, label, left_open in (
            ("steps", "Steps", "preset"), ("guidance", "Guidance", "preset"), ("seed", "Seed", "any")
        ):  # fmt: skip
            # A number field of Gradio is never empty: what is left open would be 0.
            found[name] = gr.Textbox(
                label=label, placeholder=left_open, max_lines=1, min_width=90, elem_id=f"play-{name}",
                html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
            )  # fmt: skip
        found["dice"] = gr.Button("Dice", size="sm", min_width=70, scale=0, elem_id="play-dice")
    with gr.Accordion("Pictures to edit", open=True, elem_id="play-edit"):
        found["pictures"] = gr.Gallery(
            label=f"Up to {MOST_PICTURES} pictures",
            columns=3,
            height=150,
            fit_columns=False,
            type="filepath",
            interactive=True,
            file_types=sorted({*SUFFIXES.values(), ".jpeg", ".tiff"}),
            object_fit="contain",
            buttons=[],
            sources=["upload", "clipboard"],
            elem_id="play-pictures",
        )
        found["what"] = gr.Radio(
            [("Change the picture as the prompt says", EDIT), ("Draw a new background from the prompt", BACKGROUND)],
            value=EDIT,
            label="What happens to them",
            elem_id="play-what",
        )
        found["strength"] = gr.Slider(0.05, 1, 1, step=0.05, label="Strength: below 1 stays closer to the picture")
    with gr.Accordion("Mask: paint what is drawn anew", open=False, elem_id="play-mask"):
        found["canvas"] = canvas()
    with gr.Accordion("LoRAs", open=False):
        found["loras"] = gr.Textbox(
            label="One a line: path, then scale", placeholder="ORG/NAME 0.8", lines=2, elem_id="play-loras"
        )
    return found


def canvas() -> Any:
    """The strokes are a layer of their own, and what they cover is the mask."""
    colour = "#" + "".join(f"{part:02x}" for part in BRUSH)
    return gr.ImageEditor(
        label="The first picture",
        type="pil",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=48, colors=[(colour, 0.7)], default_color=(colour, 0.7), color_mode="fixed"),
        eraser=gr.Eraser(default_size=48),
        canvas_size=(EDITOR_SIDE, EDITOR_SIDE),
        height=420,
        buttons=[],
        placeholder="Choose a picture to edit first",
        elem_id="play-canvas",
    )


def code() -> tuple[tuple[Any, ...], Any]:
    with gr.Accordion("Call it from code", open=False, elem_id="play-code"):
        refresh = gr.Button("Write it for the form as it is now", size="sm", elem_id="play-refresh")
        blocks: list[Any] = []
        for name, language in (("curl", "shell"), ("Python", "python"), ("TypeScript", "typescript")):
            with gr.Tab(name):
                blocks.append(
                    gr.Code(language=language, show_label=False, interactive=False, elem_id=f"play-{name.lower()}")
                )
    return tuple(blocks), refresh
