"""The operator's safety check: an image classifier in RAM, loaded once, and what it says of a job's pictures.

It computes on the CPU in float32, so that it takes nothing of the card and says the same on every worker. Knows nothing
of where pictures come from and go.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from PIL import Image

from ..checkpoints import classifier
from ..checkpoints.classifier import Classifier
from ..checkpoints.files import label_of
from ..errors import JobError, LoadError
from ..jobs.job import Job, Stage
from ..jobs.request import Generate
from ..log import log_line
from ..memory.failures import Failure, attempt
from ..memory.footprint import GB
from ..memory.machine import Machine, read_machine, read_ram
from ..pictures.alpha import appearances
from ..pictures.colour import to_srgb
from ..settings import Settings
from ..stopwatch import timed
from . import libraries

# What the published classifiers call pictures that hosts reject. Their other labels are normal, neutral, drawings, sfw.
USUAL_LABELS = frozenset({"explicit", "hentai", "nsfw", "porn", "pornography", "sexy", "unsafe"})
MAX_PIXELS = 1 << 20  # of a picture as the classifier gets it, which looks at a tenth of that: bounds its time and RAM
LONG = 1.5  # times the other side: from here on, squares of a picture are looked at too


@dataclass(frozen=True)
class Judge:
    """A loaded classifier. `rejected`: the numbers of the labels that are."""

    classifier: Classifier
    processor: Any
    model: Any
    rejected: tuple[int, ...]

    def judge(self, picture: Image.Image, require_running: Callable[[], None] = lambda: None) -> tuple[str, float]:
        """The likeliest of the rejected labels, and the probability that the picture has one of them.

        The picture is judged as it is seen, whatever its colour space, and is not altered; one with transparency also
        by what that hides. Of its views the worst counts, and one without a number is the worst. `require_running` is
        called before each, and may raise.
        """
        found: list[tuple[str, float]] = []
        for view in chain.from_iterable(views(to_srgb(seen)) for seen in appearances(picture)):
            require_running()
            found.append(self.look_at(view))
        return max(found, key=lambda one: one[1] if math.isfinite(one[1]) else math.inf)

    def look_at(self, picture: Image.Image) -> tuple[str, float]:
        """The same of one view, which is sRGB."""
        import torch

        scale = math.sqrt(MAX_PIXELS / (picture.width * picture.height))
        if scale < 1:
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        with torch.inference_mode():
            logits = self.model(**self.processor(images=picture, return_tensors="pt")).logits[0]
            several = self.classifier.several_at_once
            probabilities: list[float] = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        likeliest = max(self.rejected, key=probabilities.__getitem__)
        rejected = [probabilities[number] for number in self.rejected]
        return self.classifier.labels[likeliest], max(rejected) if several else sum(rejected)


class SafetyCheck:
    """`load` is for the one inference thread, on which the libraries load whatever they load; the rest for any.

    Pictures are judged on `thread` alone: torch gives each thread that computes a team of threads of its own.
    """

    def __init__(self, settings: Settings, model: str):
        self.settings, self.model = settings, model
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="safety")
        self.judge: Judge | None = None  # until it is loaded

    def load(self) -> None:
        """Have the classifier in RAM. Raises `LoadError`, transient where a later try may succeed."""
        if self.judge:
            return
        found = classifier.fetch(self.model, self.settings.QWEN_MODEL_ROOTS)
        rejected = rejected_labels(found, self.settings.QWEN_SAFETY_LABELS)
        _, available_bytes = read_ram()
        if found.ram_bytes > available_bytes:
            needed, free = found.ram_bytes / GB, available_bytes / GB
            raise LoadError(f"{found.name} needs {needed:.2f} GB of RAM; {free:.2f} GB are free")
        judge = attempt(lambda: load_judge(found, rejected))
        if isinstance(judge, Failure):
            raise LoadError(f"{found.name} cannot be loaded as an image classifier: {judge.reason}")
        self.judge = judge
        names = ", ".join(found.labels[number] for number in rejected)
        log_line(
            None, "INFO", f"safety check: {found.name} rejects {names} from {self.settings.QWEN_SAFETY_THRESHOLD:g}"
        )

    def report(self) -> dict[str, Any]:
        """What `health` tells of it."""
        judge = self.judge
        return {
            "model": label_of(self.model),
            "loaded": judge is not None,
            "rejected": [judge.classifier.labels[number] for number in judge.rejected] if judge else [],
            "threshold": self.settings.QWEN_SAFETY_THRESHOLD,
        }

    def machine_for_models(self) -> Machine:
        """What there is for models: of the RAM that plans leave for this process they subtract what it holds, and what
        it holds for the classifier is none of that."""
        machine = read_machine()
        held_bytes = self.judge.classifier.ram_bytes if self.judge else 0
        return replace(machine, process_bytes=max(0, machine.process_bytes - held_bytes))

    async def check_inputs(self, job: Job, sources: Sequence[Image.Image]) -> None:
        """Raises `JobError` content_rejected for an input picture that does not pass, and `Cancelled`."""
        count = len(sources)
        names = ["image"] if count == 1 else [f"images[{number}]" for number in range(count)]
        if isinstance(job.request, Generate) and job.request.control_image:
            names = [control.label for control in job.request.controls]
        await self.check(job, sources, names, "send another picture")

    async def check_drawn(self, job: Job, pictures: Sequence[Image.Image]) -> list[bool]:
        """For each picture whether it was rejected, which none was: all are delivered, or none is.

        Raises `JobError` content_rejected, and `Cancelled`.
        """
        count = len(pictures)
        names = ["the picture that was drawn"]
        if count > 1:
            names = [f"picture {number} of {count} that was drawn" for number in range(1, count + 1)]
        await self.check(job, pictures, names, "another prompt or seed may pass")
        return [False] * count

    async def check(self, job: Job, pictures: Sequence[Image.Image], names: Sequence[str], advice: str) -> None:
        """Enter the job's stage of it and look at the pictures, if there are any, after those of other jobs."""
        if not pictures:
            return
        job.enter(Stage.CHECKING)
        await job.run_on(self.thread, self.look_at_all, job, pictures, names, advice)

    def look_at_all(self, job: Job, pictures: Sequence[Image.Image], names: Sequence[str], advice: str) -> None:
        """Judge the pictures one by one; the decisions go to the log, and nothing of the job with them."""
        judge, threshold = self.judge, self.settings.QWEN_SAFETY_THRESHOLD
        assert judge, "load comes first"
        with timed(job.timings, "check"):
            for name, picture in zip(names, pictures, strict=True):
                label, probability = judge.judge(picture, job.require_running)
                is_rejected = probability >= threshold
                verdict = "rejected" if is_rejected else "passed"
                log_line(job.id, "INFO", f"safety check: {name} {verdict} ({label} {probability:.3f})")
                if not math.isfinite(probability):
                    raise JobError("internal", "the safety check came to no result, and nothing is sent unchecked")
                if is_rejected:
                    raise JobError(
                        "content_rejected", f"{name} is rejected by the endpoint's safety check ({label}); {advice}"
                    )


def views(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture and, if it is long, squares along its long side, each of which overlaps half of the next or more.

    A classifier squashes a picture into a square, in which a long one's figures are too narrow to be known, or it cuts
    the square out of the middle. Of the longest pictures, which are 8:1, there are 16 views.
    """
    yield picture
    side, length = sorted(picture.size)
    if length <= LONG * side:
        return
    steps = math.ceil((length - side) / (side / 2))
    for number in range(steps + 1):
        start = round((length - side) * number / steps)
        is_wide = picture.width == length
        left, top = (start, 0) if is_wide else (0, start)
        yield picture.crop((left, top, left + side, top + side))


def rejected_labels(found: Classifier, chosen: str | None) -> tuple[int, ...]:
    """The numbers of the labels that are rejected. `chosen`: the operator's, separated by commas; None for the usual.

    Raises `LoadError` for a label that the classifier does not have, and where it has none of the usual: a name that is
    wrong would let everything pass.
    """
    numbers = {label.strip().lower(): number for number, label in enumerate(found.labels)}
    has = f"{found.name} has the labels {', '.join(found.labels)[:200]}"
    if chosen is None:
        names = [name for name in numbers if name in USUAL_LABELS]
        if not names:
            raise LoadError(f"{has}, of which QWEN_SAFETY_LABELS must say which are rejected")
    else:
        names = [name.strip().lower() for name in chosen.split(",") if name.strip()]
        if unknown := [name for name in names if name not in numbers]:
            raise LoadError(f"{has}, and not {unknown[0]!r} of QWEN_SAFETY_LABELS")
    if not names or len({numbers[name] for name in names}) == len(found.labels):
        raise LoadError(f"{has}, of which QWEN_SAFETY_LABELS must name some and not all")
    return tuple(numbers[name] for name in dict.fromkeys(names))


def load_judge(found: Classifier, rejected: tuple[int, ...]) -> Judge:
    """The classifier in RAM, tried on a picture. Raises `LoadError`, and what the library raises."""
    libraries.import_up_to("transformers")
    import torch
    import transformers

    # No code of a repository's own runs here, and nothing is asked of the hub any more.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = transformers.AutoImageProcessor.from_pretrained(found.folder, **options)
    model, facts = transformers.AutoModelForImageClassification.from_pretrained(
        found.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    # The library draws at random what is missing, and warns of it.
    if missing := [*facts["missing_keys"], *facts["mismatched_keys"]]:
        raise LoadError(f"{found.name} lacks {len(missing)} of its weights, such as {str(missing[0])[:80]}")
    judge = Judge(found, processor, model.eval(), rejected)
    _, probability = judge.judge(Image.new("RGB", (64, 64), "grey"))
    if not math.isfinite(probability):
        raise LoadError(f"{found.name} comes to no number for a grey picture")
    return judge
