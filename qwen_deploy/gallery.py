"""A page of pictures that one endpoint has drawn, each with its prompt, seed, preset, card, seconds and dollars.

    .venv/bin/python -m qwen_deploy.gallery --endpoint-id ID
    .venv/bin/python -m qwen_deploy.gallery --url http://127.0.0.1:8000/v2/local

Draws the set in examples/gallery.json: edits change pictures that the same run has drawn. Writes nothing where one of
them fails or is a stand-in. Knows nothing of deployments.
"""

import argparse
import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from . import cards
from .command_options import TargetOptions, add_target
from .endpoints import find_endpoint
from .errors import DeployError, UsageError
from .pictures import Picture, read_pictures
from .runpod.client import REAL_TIME, Client, Clock
from .runpod.jobs import Answer, Queue, last_item
from .runpod.schemas import Endpoint, JobStatus, JsonObject
from .screen import Screen
from .session import ROOT, Session, open_session

LOCAL_URL = "http://127.0.0.1:8000/v2/local"
JOB_SECONDS = 1800  # the first job of a cold worker waits for a card and loads tens of GB
# WebP of this quality: twelve pictures of a megapixel stay below `MAX_BYTES`, which a repository should hold.
FORMAT: JsonObject = {"output_format": "webp", "output_quality": 70, "delivery": "inline", "response_shape": "worker"}
MAX_BYTES = 2_000_000


@dataclass(frozen=True)
class Drawn:
    """An entry of the set with what came back. `card` and `dollars` are None where nobody says."""

    entry: JsonObject
    answer: Answer
    picture: Picture
    card: str | None
    dollars: float | None


class Options(TargetOptions):
    """What the command line holds."""

    url: str
    prompts: Path
    output: Path


class Artist:
    """The endpoint that draws: one of RunPod's, or one in its shape at a URL."""

    def __init__(self, screen: Screen, options: Options, environment: Mapping[str, str], clock: Clock):
        self.screen, self.session = screen, None
        if options.endpoint_id or options.name:
            self.session: Session | None = open_session(screen, options.state, environment, clock)
            endpoint = find_endpoint(self.session.api, options)
            self.queue, self.endpoint_id = self.session.queue(endpoint), endpoint["id"]
            self.pools = cards.read_pools(self.session.api)
        else:
            url = options.url.rstrip("/")
            client = Client(environment.get("RUNPOD_API_KEY") or "none-needed", url, clock, screen.warn)
            paths = {"run": "run", "status": "status/{job_id}", "cancel": "cancel/{job_id}", "health": "health"}
            urls = {name: f"{url}/{path}" for name, path in paths.items()}
            self.queue, self.endpoint_id = Queue(client, cast(Endpoint, {"id": url, "requestUrls": urls})), url
            self.pools = []

    def ask(self, fields: JsonObject, name: str) -> Answer:
        """Raises `DeployError` for a job that does not complete."""
        with self.screen.live_progress():
            answer = self.queue.ask(
                fields, JOB_SECONDS, 2 * JOB_SECONDS,
                lambda status: self.screen.progress(f"{name}: {step_of(status)}"), self.screen.warn,
            )  # fmt: skip
        if answer.state != "COMPLETED" or answer.error:
            raise DeployError(f"{name}: the job is {answer.state}: {answer.error or 'no reason given'}")
        return answer

    def card_of(self, answer: Answer) -> tuple[str | None, float | None]:
        """The name of the card that answered, and the dollars of the answer's seconds."""
        if self.session is None:
            reply = self.ask({"task": "health"}, "health").reply
            memory = cast(JsonObject, reply.get("memory_usage") or {})
            return str(memory.get("gpu", "a CPU")), None
        card = cards.worker_card(self.session.api, self.endpoint_id, answer.worker_id)
        price = next((pool.price for pool in self.pools if card in pool.types), None)
        return card, None if price is None else answer.seconds * price / 3600


def step_of(status: JobStatus) -> str:
    """The state of a job, and its step where it is drawn."""
    output, state = last_item(status.get("output")), status["status"].lower().replace("_", " ")
    message = cast(JsonObject, output) if isinstance(output, dict) else {}
    return f"{state}, step {message['step']} of {message['total']}" if message.get("step") else state


def main(
    arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ, clock: Clock = REAL_TIME
) -> int:
    """The exit code: 0 drawn, 1 failed, 2 asked wrongly, 130 interrupted."""
    options = parser().parse_args(arguments, Options())
    screen = Screen()
    try:
        entries = read_set(options.prompts)
        drawn = draw_all(Artist(screen, options, environment, clock), entries)
        page = write(drawn, options.output)
    except DeployError as failure:
        screen.bad(str(failure))
        return 2 if isinstance(failure, UsageError) else 1
    except KeyboardInterrupt:  # `Queue.ask` has cancelled the job
        screen.bad("Interrupted: no page was written.")
        return 130
    screen.good(f"{len(drawn)} pictures: {page}")
    return 0


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser("python -m qwen_deploy.gallery", description=(__doc__ or "").split("\n\n")[0])
    add_target(command, "the one at --url")
    command.add_argument("--url", default=LOCAL_URL, help="an endpoint in RunPod's shape (default: %(default)s)")
    command.add_argument("--prompts", type=Path, default=ROOT / "examples/gallery.json", help="the jobs, as JSON")
    command.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the page (default: docs)")
    return command


def read_set(file: Path) -> list[JsonObject]:
    """The entries: fields of jobs with a `name`, and `edit_of` with the name of an earlier one. Raises `UsageError`."""
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {file} cannot be read: {type(error).__name__}.") from None
    names: list[object] = []
    for entry in cast(list[JsonObject], entries if isinstance(entries, list) else []):
        name, source = entry.get("name"), entry.get("edit_of")
        if not isinstance(name, str) or not name.replace("-", "").isalnum() or name in names:
            raise UsageError(f"--prompts: each name must be letters, digits and -, and stand once, not {name!r}.")
        if source is not None and source not in names:
            raise UsageError(f"--prompts: {name} is an edit_of {source!r}, which does not stand before it.")
        names.append(name)
    if not names:
        raise UsageError(f"--prompts {file} must be a list of jobs, with at least one.")
    return cast(list[JsonObject], entries)


def draw_all(artist: Artist, entries: list[JsonObject]) -> list[Drawn]:
    """Raises `DeployError` for the first that is no picture by the model."""
    drawn: dict[str, Drawn] = {}
    for entry in entries:
        name = str(entry["name"])
        fields: JsonObject = {"task": "edit" if "edit_of" in entry else "generate", **entry, **FORMAT}
        del fields["name"]
        if "edit_of" in entry:
            fields["image"] = base64.b64encode(drawn[str(fields.pop("edit_of"))].picture.data).decode()
        answer = artist.ask(fields, name)
        if answer.metadata.get("backend") != "qwen-image":
            raise DeployError(f"{name} is a stand-in: {answer.metadata.get('fallback_reason')}")
        drawn[name] = Drawn(entry, answer, read_pictures(answer.reply)[0], *artist.card_of(answer))
        artist.screen.good(f"{name}: {answer.seconds:.1f} s")
    return list(drawn.values())


def write(drawn: list[Drawn], folder: Path) -> Path:
    """The page, in the folder with its pictures in gallery/ there. Raises `DeployError` where they are too large."""
    size = sum(len(one.picture.data) for one in drawn)
    if size > MAX_BYTES:
        raise DeployError(f"The pictures have {size / 1e6:.1f} MB, and may have {MAX_BYTES / 1e6:g} in the repository.")
    for one in drawn:
        one.picture.save(folder / "gallery", str(one.entry["name"]))
    page = folder / "gallery.md"
    page.write_text(page_of(drawn))
    return page


def page_of(drawn: list[Drawn]) -> str:
    models = {(facts.get("model"), facts.get("revision")) for one in drawn for facts in [facts_of(one)]}
    warnings = {str(text) for one in drawn for text in cast(list[object], facts_of(one).get("warnings") or [])}
    lines = [
        "# Gallery", "",
        "Every picture is the first that was drawn with its prompt and seed. Written by `make gallery` on "
        f"{datetime.now(UTC):%Y-%m-%d}, worker {facts_of(drawn[0]).get('worker_version')}.",
        "The seconds are what the platform counted for the job; the first job of a cold worker includes its load.",
        "Dollars are those seconds at the card's price; idle seconds come on top.", "",
        "Models: " + ", ".join(f"{name} ({revision})" for name, revision in sorted(models, key=str)) + ".", "",
        *(f"**{text[0].upper()}{text[1:]}.**\n" for text in sorted(warnings)),
        "| picture | prompt | seed | preset, steps | size | card | seconds | dollars |",
        "|---|---|---|---|---|---|---|---|",
        *map(row_of, drawn),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def facts_of(one: Drawn) -> JsonObject:
    return cast(JsonObject, one.answer.metadata)


def row_of(one: Drawn) -> str:
    entry, facts = one.entry, facts_of(one)
    name, prompt = str(entry["name"]), str(entry["prompt"]).replace("|", "\\|")
    source = f"edit of *{entry['edit_of']}*: " if "edit_of" in entry else ""
    cells = [
        f"![{name}](gallery/{name}.{one.picture.format})", source + prompt, facts.get("seed"),
        f"{facts.get('preset')}, {facts.get('steps')}", facts.get("dimensions"), one.card or "not known",
        f"{one.answer.seconds:.1f}", "not known" if one.dollars is None else f"${one.dollars:.4f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
