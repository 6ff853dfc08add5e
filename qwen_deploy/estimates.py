"""Seconds of a picture and of an edit on a card, before and after an endpoint has drawn any.

They come from one table, `benchmarks/results/computed.json`, which `python -m benchmarks computed` writes and explains:
computed for every card and layout, and measured where a card was. What this endpoint's own jobs took counts before
both. Knows nothing of prices, or of what is chosen by these seconds.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from qwen_worker.checkpoints import checkpoint
from qwen_worker.jobs.presets import MODELS, Presets
from qwen_worker.preset_settings import Preset
from qwen_worker.settings import Settings

from .errors import DeployError
from .records import Timing

TABLE = Path(__file__).parents[1] / "benchmarks/results/computed.json"
COMPUTED, MEASURED, MEASURED_HERE = "computed", "measured", "measured on this endpoint"
KINDS = {"QwenImagePipeline": "generate", "QwenImageEditPipeline": "edit", "QwenImageEditPlusPipeline": "edit plus"}
TASKS_OF_ROLE = {"generate": ("generate",), "edit": ("edit", "background_replacement"), "layers": ("layers",)}
# Pixels of a job that counts as one of the table's size, 1024x1024; an edit has about as many, in its picture's aspect.
PIXELS = range(900_000, 1_200_000)
LEAST_LOAD = 5.0  # seconds; what took less was no start of a cold worker


@dataclass(frozen=True)
class Figure:
    """`basis`: COMPUTED, MEASURED (by a benchmark on such a card) or MEASURED_HERE."""

    seconds: float
    basis: str


@dataclass(frozen=True)
class Drawing:
    """How jobs are drawn that ask for nothing: `kind` of pass in the table, None for a model that it does not have."""

    model: str
    kind: str | None
    preset: str
    steps: int
    gpus: int = 1  # on which one picture is drawn


class Row(TypedDict):
    """A line of the table. `generate`, `edit` and `edit plus` have seconds by preset, and those of one `pass`."""

    card: str
    plan: str
    prepare: float


class SecondsTable:
    """The table in `path`. Raises `DeployError` where it cannot be read."""

    def __init__(self, path: Path = TABLE):
        try:
            report = json.loads(path.read_text())
            self.presets: Mapping[str, Mapping[str, int]] = report["presets"]
            self.rows = {(row["card"], row["plan"]): row for row in report["rows"]}
            self.measured: list[dict[str, object]] = report["measured"]
            self.files_gb: float = report["files GB"]
            self.read_rates: Mapping[str, float] = report["read GB/s"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            name = f"{path.parent.name}/{path.name}"
            raise DeployError(
                f"The table of seconds, {name}, cannot be read ({type(error).__name__}): `python -m benchmarks "
                "computed` writes it."
            ) from None
        self.cards = sorted({card for card, _ in self.rows}, key=len, reverse=True)

    def card_of(self, device: str) -> str | None:
        """The table's card of a device's name, such as "NVIDIA H100 80GB HBM3"; None for one that it does not have."""
        return next((card for card in self.cards if re.search(rf"\b{re.escape(card)}\b", device)), None)

    def job(self, device: str, layout: str, drawing: Drawing) -> Figure | None:
        """Of a job on the device in the layout, in words; None where the table does not have it."""
        card = self.card_of(device)
        row = self.rows.get((card or "", layout))
        if row is None or drawing.kind is None:
            return None
        wanted = {"card": card, "plan": layout, "kind": drawing.kind, "preset": drawing.preset, "steps": drawing.steps}
        seconds, usual = row[drawing.kind], self.presets[drawing.preset]
        saved = self.passes_saved(drawing) * seconds["pass"]
        for job in self.measured:
            if all(job[name] == value for name, value in wanted.items()):
                return Figure(float(str(job["seconds"])) - saved, COMPUTED if saved else MEASURED)
        more_passes = (drawing.steps - usual["steps"]) * usual["passes"] / usual["steps"]
        return Figure(seconds[drawing.preset] + more_passes * seconds["pass"] - saved, COMPUTED)

    def passes_saved(self, drawing: Drawing) -> float:
        """How many passes a second card computes beside others: half of guidance's, but for the first step's."""
        usual = self.presets[drawing.preset]
        if drawing.gpus == 1 or drawing.preset == Preset.FAST:  # which draws without guidance
            return 0.0
        return max(0.0, usual["passes"] * drawing.steps / usual["steps"] / 2 - 1)

    def load(self, device: str, layout: str, source: str) -> Figure | None:
        """From a worker's start to its first pass, its files being on a "disk" or a "volume"; downloads left out."""
        row = self.rows.get((self.card_of(device) or "", layout))
        return row and Figure(row["prepare"] + self.files_gb / self.read_rates[source], COMPUTED)


def drawing_of(settings: Settings, role: str) -> Drawing:
    """How the role's model draws a job that names neither preset nor steps."""
    model = getattr(settings, MODELS[role])
    released = checkpoint.released(model)
    presets = Presets(settings, released=checkpoint.released)
    preset = Preset.QUALITY if presets.obstacle(settings.QWEN_PRESET, role) else settings.QWEN_PRESET
    kind = KINDS.get(released.class_name) if released else None
    return Drawing(model, kind, preset.value, presets.steps(preset, role))


def measured_job(timings: Sequence[Timing], types: Sequence[str], role: str, drawing: Drawing) -> Figure | None:
    """The median of the endpoint's own jobs that were drawn so, on cards with these ids; None where there are none."""
    seconds = [
        timing["seconds"] / timing["pictures"]
        for timing in timings
        if timing["task"] in TASKS_OF_ROLE[role] and timing["card"] in types and timing["steps"] == drawing.steps
        and pixels_of(timing["size"]) in PIXELS and timing.get("gpus", 1) == drawing.gpus
    ]  # fmt: skip
    return Figure(statistics.median(seconds), MEASURED_HERE) if seconds else None


def measured_load(timings: Sequence[Timing], types: Sequence[str]) -> Figure | None:
    """The median of the loads of the endpoint's cold workers on such cards."""
    loads = [timing["load"] for timing in timings if timing["card"] in types and timing["load"] >= LEAST_LOAD]
    return Figure(statistics.median(loads), MEASURED_HERE) if loads else None


def pixels_of(dimensions: str | None) -> int:
    """Of a size such as 1024x768; 0 where it is none."""
    match = re.fullmatch(r"(\d+)x(\d+)", dimensions or "")
    return int(match[1]) * int(match[2]) if match else 0
