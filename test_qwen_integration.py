"""Checks on this machine, with real jobs, that the worker does what it promises; prints each finding with its figure.

Models load without falling back; images are generated, not gradients; background replacement works; a job ends within
the time limit; memory stays stable. On a card, first of all: its optimisations give what the plain way gives. Uses the
configured checkpoints where they fit and the tiny one elsewhere. A command, not a pytest module:
`python test_qwen_integration.py --help`.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

try:
    from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps, ImageStat
except ImportError as failure:
    from qwen_deploy.packages import explain_missing

    explain_missing(failure, "test_qwen_integration.py", "integration")

ROOT = Path(__file__).resolve().parent
TINY = ROOT / "models/tiny-qwen-image"

GRADIENT_SHARE = 0.5  # of the pixels on one tilted plane; a gradient with text on it has more
SMOOTHNESS = 0.8  # correlation of neighbouring pixels; noise has far less, pictures of any kind more
BACKGROUND_CHANGE = 0.10  # mean change of background pixels, 0 to 1
SUBJECT_CHANGE = 0.15  # mean change of the subject's pixels, 0 to 1
SUBJECT_OVERLAP = 0.80  # intersection over union of the subject before and after
MEMORY_GROWTH = 0.05  # from the second job of the repeats to the last, relative
MEMORY_SLACK_MB = 64  # growth below this is the allocator's


def main() -> None:
    options = parse_options()
    os.environ["RUNPOD_DEBUG_LEVEL"] = "ERROR"  # the findings are this command's output, not the jobs' log lines
    worker, which = prepare(options)
    print(f"Checkpoints: {which}\nSteps {options.steps}, size {options.size}x{options.size}, repeats {options.repeats}")
    run = Run(worker, options)
    from qwen_worker.memory.machine import read_machine

    checks = [loads, generates, replaces_background, in_time, stable_memory]
    if read_machine().gpu:
        checks.insert(0, optimises)  # in a process of its own, before the worker takes the card's memory
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        for check in progress.track(checks, description="checking"):
            run.verdicts.append(check(run))
            passed, name, figures = run.verdicts[-1]
            progress.console.print(f"{'PASS' if passed else 'FAIL'}  {name}: {figures}", highlight=False, markup=False)
    sheet = run.contact_sheet()
    print(f"Pictures: {options.output.resolve()}, all of them on {sheet.name}")
    failed = [name for passed, name, _ in run.verdicts if not passed]
    print("All criteria hold." if not failed else f"{len(failed)} of {len(checks)} criteria fail: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--image-model", help="text-to-image checkpoint: hub id or folder (default: QWEN_IMAGE_MODEL)")
    parser.add_argument("--edit-model", help="edit checkpoint: hub id or folder (default: QWEN_EDIT_MODEL)")
    parser.add_argument("--tiny", action="store_true", help="use the tiny checkpoint even where the real ones fit")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of every job (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=512, help="side of generated pictures in pixels (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="jobs of the memory check (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=30, help="seconds that a job may take (default: %(default)g)")
    parser.add_argument("--output", type=Path, default=Path("out/integration"), help="folder for the pictures")
    options = parser.parse_args()
    for name in ("steps", "size", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    return options


def prepare(options: argparse.Namespace):
    """A worker on the checkpoints asked for, or on the tiny one where they cannot load, and the words for which."""
    from qwen_worker.errors import LoadError
    from qwen_worker.settings import Fallback, Settings
    from runpod_handler import Worker

    asked = {"QWEN_IMAGE_MODEL": options.image_model, "QWEN_EDIT_MODEL": options.edit_model}
    settings = Settings(**{name: value for name, value in asked.items() if value})
    names = f"{settings.QWEN_IMAGE_MODEL} and {settings.QWEN_EDIT_MODEL}"
    tiny = settings.model_copy(
        update={"QWEN_IMAGE_MODEL": str(TINY / "generate"), "QWEN_EDIT_MODEL": str(TINY / "edit")}
    )
    if options.tiny:
        return Worker(tiny), "the tiny one, as asked"
    # Forced to fall back, or asked for by name: what was configured is what is checked.
    if settings.QWEN_FALLBACK is Fallback.FORCE or any(asked.values()):
        return Worker(settings), names
    worker = Worker(settings)
    try:
        for task in ("generate", "edit"):
            worker.pipelines.place(task)
    except LoadError as failure:
        return Worker(tiny), f"the tiny one; the configured ones do not fit: {failure.reason}"
    return worker, names


@dataclass
class Run:
    """The jobs sent so far, their pictures and the verdicts."""

    worker: object
    options: argparse.Namespace
    verdicts: list[tuple[bool, str, str]] = field(default_factory=list)
    pictures: list[tuple[str, Image.Image]] = field(default_factory=list)
    jobs: list[dict] = field(default_factory=list)

    def job(self, name: str, **fields) -> tuple[Image.Image | None, dict]:
        """(picture, metadata) of a job through the SDK's `run_job`; (None, {"error": ...}) when it failed."""
        from runpod.serverless.modules.rp_job import run_job

        # An edit keeps its own size, about a megapixel: what the edit models are made for.
        side = {} if "image" in fields else {"width": self.options.size, "height": self.options.size}
        # Whatever the endpoint's settings say, the picture is where this script looks for it.
        own = {"delivery": "inline", "response_shape": "worker"}
        fields = {**side, **own, "num_inference_steps": self.options.steps, "seed": 1, **fields}
        body = asyncio.run(run_job(self.worker.answer, {"id": name, "input": fields}))
        if "error" in body:
            return None, {"error": body["error"]}
        picture = Image.open(io.BytesIO(base64.b64decode(body["output"]["image"]))).convert("RGB")
        self.options.output.mkdir(parents=True, exist_ok=True)
        picture.save(self.options.output / f"{name}.png")
        self.pictures.append((name, picture))
        self.jobs.append(body["output"]["metadata"])
        return picture, body["output"]["metadata"]

    def contact_sheet(self) -> Path:
        side, label = 256, 24
        columns = min(4, max(1, len(self.pictures)))
        rows = -(-len(self.pictures) // columns)
        sheet = Image.new("RGB", (columns * side, max(1, rows) * (side + label)), "white")
        for k, (name, picture) in enumerate(self.pictures):
            corner = (k % columns * side, k // columns * (side + label))
            sheet.paste(ImageOps.pad(picture, (side, side), color="white"), corner)
            ImageDraw.Draw(sheet).text((corner[0] + 6, corner[1] + side + 6), name, fill="black")
        self.options.output.mkdir(parents=True, exist_ok=True)
        path = self.options.output / "contact-sheet.png"
        sheet.save(path)
        return path


def scene(side: int) -> tuple[Image.Image, Image.Image]:
    """A red disc on blue, and the mask of the disc: an input whose subject is known pixel by pixel."""
    mask = Image.new("L", (side * 4, side * 4), 0)
    ImageDraw.Draw(mask).ellipse([side * 4 * k for k in (0.27, 0.27, 0.73, 0.73)], fill=255)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    return Image.composite(
        Image.new("RGB", mask.size, (220, 40, 40)), Image.new("RGB", mask.size, (40, 80, 220)), mask
    ), mask


def optimises(run: Run):
    name = "optimisations give what the plain way gives"
    run.options.output.mkdir(parents=True, exist_ok=True)
    report = run.options.output / "check_card.json"
    command = [sys.executable, "-m", "qwen_worker.check_card", "--output", str(report.resolve())]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not report.is_file():
        return False, name, (ended.stderr or ended.stdout).strip().splitlines()[-1]
    cases = json.loads(report.read_text())["cases"]
    findings = [f"{case['name']}: {one['words']}" for case in cases for one in case["findings"] if not one["passed"]]
    failures = [f"{case['name']}: {case['failure']}" for case in cases if case["failure"]]
    made = sum(len(case["findings"]) for case in cases)
    return ended.returncode == 0, name, "; ".join(findings + failures) or f"{made} findings, all in {report.name}"


def loads(run: Run):
    name = "models load without falling back"
    picture, _ = scene(run.options.size)
    findings = [
        run.job("load-generate", prompt="a large red circle in the center, on a blue background")[1],
        run.job("load-edit", task="edit", prompt="make the background green", image=as_base64(picture))[1],
    ]
    for facts in findings:
        if facts.get("backend") != "qwen-image":
            return False, name, facts.get("error") or facts.get("fallback_reason")
    seconds = " and ".join(f"{facts['model']} in {facts['timings']['load']:.1f} s" for facts in findings)
    return True, name, seconds


def generates(run: Run):
    name = "images are generated, not gradients"
    drawn = [
        run.job(f"generate-{k}", prompt=prompt, seed=seed)
        for k, (prompt, seed) in enumerate(
            [
                ("a large green triangle in the center, on a yellow background", 1),
                ("a large green triangle in the center, on a yellow background", 2),
                ("a small white square on the left, on a purple background", 1),
            ]
        )
    ]
    for _, facts in drawn:
        if "error" in facts:
            return False, name, facts["error"]
    pictures = [picture for picture, _ in drawn]
    share = max(gradient_share(picture) for picture in pictures)
    smooth = min(smoothness(picture) for picture in pictures)
    differ = ImageChops.difference(pictures[0], pictures[2]).getbbox() is not None
    backends = {facts["backend"] for _, facts in drawn}
    passed = backends == {"qwen-image"} and share < GRADIENT_SHARE and smooth > SMOOTHNESS and differ
    figures = (
        f"backend {', '.join(backends)}; {share:.2f} of the pixels lie on a gradient (below {GRADIENT_SHARE}); "
        f"neighbouring pixels correlate {smooth:.2f} (above {SMOOTHNESS}); another prompt "
        f"{'gives another picture' if differ else 'gives the same picture'}"
    )
    return passed, name, figures


def replaces_background(run: Run):
    name = "background replacement works"
    source, mask = scene(run.options.size)
    picture, facts = run.job(
        "background", task="background_replacement", prompt="a plain green wall", image=as_base64(source)
    )
    if picture is None:
        return False, name, facts["error"]
    picture = picture.resize(source.size, Image.Resampling.BOX)
    # Pixels near the outline belong to neither.
    inside = mask.filter(ImageFilter.MinFilter(9)).point(lambda value: 255 * (value > 250))
    outside = ImageOps.invert(mask).filter(ImageFilter.MinFilter(9)).point(lambda value: 255 * (value > 250))
    changed, kept = (mean_change(source, picture, area) for area in (outside, inside))
    overlap = subject_overlap(source, picture, mask, inside)
    passed = (
        facts["backend"] == "qwen-image"
        and changed > BACKGROUND_CHANGE
        and kept < SUBJECT_CHANGE
        and overlap > SUBJECT_OVERLAP
    )
    figures = (
        f"backend {facts['backend']}; background changed by {changed:.2f} (above {BACKGROUND_CHANGE}), "
        f"subject by {kept:.2f} (below {SUBJECT_CHANGE}), subject overlap {overlap:.2f} (above {SUBJECT_OVERLAP})"
    )
    return passed, name, figures


def in_time(run: Run):
    name = f"a job ends within {run.options.limit:g} s"
    if not run.jobs:
        return False, name, "no job succeeded"
    slowest: dict[str, float] = {}
    for facts in run.jobs:
        if facts["timings"].get("load", 0) < 0.1:  # the first job of each model waits for its load
            task = "edit" if "strength" in facts else "generate"
            slowest[task] = max(slowest.get(task, 0), facts["processing_time"])
    if not slowest:
        return False, name, "no job ran on a loaded model"
    figures = ", ".join(f"slowest {task} {seconds:.1f} s" for task, seconds in slowest.items())
    real = all(facts["backend"] == "qwen-image" for facts in run.jobs)
    return real and max(slowest.values()) <= run.options.limit, name, figures + ("" if real else "; of PIL stand-ins")


def stable_memory(run: Run):
    from qwen_worker.memory.machine import bytes_in_use, read_machine

    name = "memory stays stable"
    used = []
    for k in range(run.options.repeats + 1):
        _, facts = run.job(f"repeat-{k}", prompt="a small red square on the right, on a white background", seed=k)
        if "error" in facts or facts["backend"] != "qwen-image":
            return False, name, facts.get("error") or facts["fallback_reason"]
        used.append(bytes_in_use(read_machine()) / 1e9)
    first, last = used[min(1, len(used) - 1)], used[-1]
    growth = last - first
    passed = growth <= max(MEMORY_GROWTH * first, MEMORY_SLACK_MB / 1e3)
    return passed, name, f"{first:.3f} GB after the second job, {last:.3f} GB after {len(used)}: {growth * 1e3:+.0f} MB"


def gradient_share(picture: Image.Image) -> float:
    """The share of the pixels that lie on one tilted plane of brightness, as those of a gradient do; 0 if it is level.

    The plane is fitted to the pixels nearest to it, so that text on a gradient does not hide it.
    """
    import numpy as np

    pixels = np.asarray(picture.resize((64, 64), Image.Resampling.NEAREST), dtype=float).reshape(-1, 3)
    rows, columns = np.mgrid[0:64, 0:64] / 63
    place = np.stack([np.ones(64 * 64), rows.ravel(), columns.ravel()], axis=1)
    near = np.ones(64 * 64, dtype=bool)
    for _ in range(8):
        plane = np.linalg.lstsq(place[near], pixels[near], rcond=None)[0]
        distance = np.abs(pixels - place @ plane).max(axis=1)
        near = distance <= np.quantile(distance, 0.6)
    rise = np.abs(plane[1]) + np.abs(plane[2])
    return float((distance < 12).mean()) if rise.max() > 24 else 0.0


def smoothness(picture: Image.Image) -> float:
    """The correlation of horizontally neighbouring pixels' brightness."""
    import numpy as np

    grey = np.asarray(picture.convert("L"), dtype=float)
    left, right = grey[:, :-1].ravel(), grey[:, 1:].ravel()
    if left.std() == 0 or right.std() == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def mean_change(before: Image.Image, after: Image.Image, area: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(before, after), area).mean) / 3 / 255


def subject_overlap(before: Image.Image, after: Image.Image, mask: Image.Image, inside: Image.Image) -> float:
    """Intersection over union of the subject's mask and the pixels that still have the subject's colour."""
    import numpy as np

    colour = np.array(ImageStat.Stat(before, inside).median)
    distance = np.linalg.norm(np.asarray(after, dtype=float) - colour, axis=2)
    found, expected = distance < 80, np.asarray(mask) > 127
    return float((found & expected).sum() / (found | expected).sum())


def as_base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as failure:  # this Python has Pillow, and lacks others
        from qwen_deploy.packages import explain_missing

        explain_missing(failure, "test_qwen_integration.py", "integration")
