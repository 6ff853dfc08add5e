"""What happens on the page: a job is drawn, stopped, picked up again and chosen from the history.

Every handler returns updates of the page's parts. Knows nothing of the layout.
"""

# Gradio is in the page's own environment, and not in the one where types are checked.
# pyright: reportMissingImports=false

import base64
import json
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from . import shown, snippets
from .errors import PlayError
from .form import Form, Picture
from .history import Entry
from .jobs import FollowedJob, Jobs
from .page import BACKGROUND, EDIT, Controls
from .uploads import ground_of_mask, mask_of, open_picture, strokes_of

Updates = dict[Any, Any]  # by part of the page
DICE_SIDES = 2**32  # seeds that are read aloud and typed easily
CAPTION = 60  # characters of a prompt below its picture


@dataclass(frozen=True)
class Visit:
    """What the browser remembers: a name that nobody else knows, and the job that it has begun last."""

    visitor: str
    job_id: str = ""
    url: str = ""

    @classmethod
    def read(cls, stored: Any) -> "Visit":
        """Of what the browser sends, which anybody may have written. A new visitor where that is nothing."""
        if isinstance(stored, list) and len(stored) == 3 and all(isinstance(part, str) for part in stored):
            return cls(*stored)
        return cls(secrets.token_hex(16))

    def stored(self) -> list[str]:
        """A list, because Gradio takes an object to be an update of the part itself."""
        return [self.visitor, self.job_id, self.url]


class Wiring:
    """Of one page. `jobs` are those of all visitors."""

    def __init__(self, page: Controls, jobs: Jobs):
        self.page, self.jobs, self.folder = page, jobs, jobs.folder

    def connect(self, blocks: Any) -> None:
        """Every event that only reads is answered beside the others: a drawing keeps nobody waiting."""
        page = self.page
        calm: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        moving = {page.visit, page.job, page.draw, page.stop, page.status, page.picture, page.facts, page.metadata}
        moving |= {page.reuse, page.history, *page.snippets}
        loaded = blocks.load(self.load, {page.visit}, {*moving, *page.form}, **calm)
        gr.on(
            [page.draw.click, page.prompt.submit], self.draw, {page.visit, *page.form}, moving, cancels=[loaded], **calm
        )
        page.stop.click(self.stop, {page.job}, {page.stop}, **calm)
        page.dice.click(lambda: str(random.randrange(DICE_SIDES)), None, page.seed, queue=False, **calm)
        page.refresh.click(self.write_code, {*page.form}, {*page.snippets}, **calm)
        page.pictures.upload(self.check_pictures, {page.pictures}, {page.pictures, page.canvas}, **calm)
        page.pictures.delete(self.check_pictures, {page.pictures}, {page.pictures, page.canvas}, **calm)
        page.reuse.click(self.reuse, {page.visit, page.job}, {page.pictures, page.canvas}, **calm)
        page.history.select(
            self.choose,
            {page.visit},
            {*page.form, page.job, page.picture, page.facts, page.metadata, page.reuse},
            **calm,
        )

    def load(self, values: Updates) -> Iterator[Updates]:
        """The history of this browser; and the job that it has begun, as long as the job runs."""
        visit = Visit.read(values[self.page.visit])
        yield {self.page.visit: visit.stored(), self.page.history: self.gallery(visit.visitor)}
        if not visit.job_id or visit.url != self.jobs.endpoint.url:
            return
        if job := self.jobs.pick_up(visit.visitor, visit.job_id):
            yield self.refill(job.form) if job.form else {}
            yield from self.watch(visit.visitor, job)

    def draw(self, values: Updates) -> Iterator[Updates]:
        page, visit = self.page, Visit.read(values[self.page.visit])
        yield {page.draw: gr.update(interactive=False), page.status: "<p>Handing the job in</p>"}
        try:
            form = self.read_form(values)
            job = self.jobs.begin(visit.visitor, form)
        except PlayError as error:
            yield {page.status: shown.failure_html(str(error)), page.draw: gr.update(interactive=True)}
            return
        begun = Visit(visit.visitor, job.job_id, self.jobs.endpoint.url)
        yield {page.visit: begun.stored(), **self.code_of(form)}
        yield from self.watch(visit.visitor, job)

    def watch(self, visitor: str, job: FollowedJob) -> Iterator[Updates]:
        page = self.page
        yield {
            page.job: job.job_id, page.stop: gr.update(interactive=True), page.facts: "", page.metadata: "",
            page.reuse: gr.update(visible=False), page.picture: None,
        }  # fmt: skip
        preview = ""
        for moment in job.moments():
            updates: Updates = {page.status: shown.moment_html(moment)}
            if moment.preview != preview and not moment.over:
                preview = moment.preview
                updates[page.picture] = gr.update(
                    value=self.preview_file(job, preview), alt_text="The unfinished picture"
                )
            if moment.over:
                updates |= {page.draw: gr.update(interactive=True), page.stop: gr.update(interactive=False)}
                if job.entry:
                    updates |= self.show(job.entry) | {page.history: self.gallery(visitor)}
            yield updates

    def preview_file(self, job: FollowedJob, preview: str) -> str | None:
        if not preview:
            return None
        file = self.folder / f"preview-{secrets.token_hex(8)}.jpg"
        file.write_bytes(base64.b64decode(preview))
        return str(file)

    def stop(self, values: Updates) -> Updates:
        """The page that watches the job hears of its end from the endpoint."""
        try:
            self.jobs.endpoint.cancel(values[self.page.job])
        except PlayError as error:
            gr.Warning(str(error))
            return {}
        return {self.page.stop: gr.update(interactive=False)}

    def show(self, entry: Entry) -> Updates:
        page, result = self.page, entry.result
        return {
            page.picture: gr.update(value=str(entry.file), alt_text=entry.form.prompt if entry.form else "The picture"),
            page.facts: shown.result_html(result),
            page.metadata: json.dumps(result.metadata, indent=2, ensure_ascii=False),
            page.reuse: gr.update(visible=True),
        }  # fmt: skip

    def gallery(self, visitor: str) -> list[tuple[str, str]]:
        return [(str(entry.file), caption(entry)) for entry in self.jobs.history.entries(visitor)]

    def choose(self, values: Updates, event: gr.SelectData) -> Updates:
        """Fills the form with the entry; its seed is the one that was drawn, so that it can be drawn again."""
        entries = self.jobs.history.entries(Visit.read(values[self.page.visit]).visitor)
        if not 0 <= event.index < len(entries):
            return {}
        entry = entries[event.index]
        filled = self.refill(entry.form) | {self.page.seed: str(entry.result.seed)} if entry.form else {}
        return {**filled, **self.show(entry), self.page.job: entry.job_id}

    def reuse(self, values: Updates) -> Updates:
        """The shown picture as the first one to edit."""
        for entry in self.jobs.history.entries(Visit.read(values[self.page.visit]).visitor):
            if entry.job_id == values[self.page.job]:
                return self.pictures_updates([open_picture(entry.file, "The picture")])
        return {}

    def check_pictures(self, values: Updates) -> Updates:
        """Takes out what is no picture, and says so."""
        pictures: list[Picture] = []
        for path, _ in values[self.page.pictures] or []:
            try:
                pictures.append(open_picture(Path(path), Path(path).name))
            except PlayError as error:
                gr.Warning(str(error))
        return self.pictures_updates(pictures)

    def pictures_updates(self, pictures: list[Picture], mask: Picture | None = None) -> Updates:
        canvas = None
        if pictures:
            ground = ground_of_mask(pictures[0], self.folder)
            layers = [str(strokes_of(mask, ground, self.folder))] if mask else []
            canvas = {"background": str(ground), "layers": layers, "composite": None}
        return {self.page.pictures: [str(picture.file) for picture in pictures] or None, self.page.canvas: canvas}

    def read_form(self, values: Updates) -> Form:
        """Raises `PlayError` for a file that is no picture."""
        (prompt, negative, preset, ratio, small, steps, guidance, seed, chosen, what, strength, canvas, loras) = (
            values[part] for part in self.page.form
        )
        pictures = tuple(open_picture(Path(path), Path(path).name) for path, _ in chosen or [])
        mask = mask_of(canvas["layers"], pictures[0], self.folder) if canvas and pictures else None
        return Form(
            prompt or "", negative or "", preset or "", ratio or "", bool(small), steps or "", guidance or "",
            seed or "", loras or "", pictures, what == BACKGROUND, strength, mask,
        )  # fmt: skip

    def refill(self, form: Form) -> Updates:
        what = BACKGROUND if form.new_background else EDIT
        values = (
            form.prompt, form.negative_prompt, form.preset, form.ratio, form.small, form.steps, form.guidance,
            form.seed, None, what, form.strength, None, form.loras,
        )  # fmt: skip
        return dict(zip(self.page.form, values, strict=True)) | self.pictures_updates(list(form.pictures), form.mask)

    def write_code(self, values: Updates) -> Updates:
        try:
            return self.code_of(self.read_form(values))
        except PlayError as error:
            gr.Warning(str(error))
            return {}

    def code_of(self, form: Form) -> Updates:
        url = self.jobs.endpoint.url
        texts = (snippets.curl(url, form), snippets.python(url, form), snippets.typescript(url, form))
        return dict(zip(self.page.snippets, texts, strict=True))


def caption(entry: Entry) -> str:
    text = entry.form.prompt if entry.form else "A job from before"
    return text if len(text) <= CAPTION else text[: CAPTION - 3] + "..."
