"""The first pictures: starts an endpoint on this machine with the tiny checkpoint, sends it jobs, saves the results.

    .venv/bin/python -m examples.quickstart                                      # one picture, and one edit
    .venv/bin/python -m examples.quickstart "a small red circle on the left, on a blue background"
    .venv/bin/python -m examples.quickstart "make the background green" --image out/generate.png

What it sends is what a client of RunPod's endpoint sends, and the worker that answers is the one that runs there.
"""

import argparse
import base64
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qwen_tiny.world import wordings

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models/tiny-qwen-image"
OUT = ROOT / "out"
POLL_SECONDS = 0.2
PATIENCE = 180  # seconds without any change of a job's status: importing torch from a cold disk takes a while

DRAWN = {"width": 512, "height": 512}
COMMON = {"num_inference_steps": 20, "seed": 7}
JOBS = {
    "generate": {"prompt": "a large green triangle in the center, on a yellow background", **DRAWN, **COMMON},
    "background_replacement": {
        "task": "background_replacement",
        "prompt": "a plain green wall",
        "image": base64.b64encode((ROOT / "examples/red-circle.png").read_bytes()).decode(),
        **COMMON,
    },
}
EXAMPLES = (
    "a small yellow diamond on the right, on a green background",
    "a big white square in the middle, against a purple background",
    "a little orange circle on the left, on a black background",
)
EDIT_EXAMPLES = ("make the background green", "paint the circle yellow", "turn the square into a triangle")

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    options = parse_options()
    jobs = JOBS if options.prompt is None else own_job(options.prompt, options.image)
    if options.prompt is not None and (unknown := unknown_words(options.prompt)):
        explain_vocabulary(unknown)
    console.print("Starting an endpoint on this machine, with the tiny checkpoint ...")
    command = [sys.executable, "-m", "qwen_local", "--port", "0"]
    command += ["--model", str(TINY / "generate"), "--edit-model", str(TINY / "edit")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = address_of(server)
            for name, fields in jobs.items():
                draw(url, name, fields)
        finally:
            server.terminate()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws with the tiny checkpoint, which knows coloured shapes only. Pictures are saved in out/.",
        epilog="prompts that it knows:\n" + "\n".join(f"  {one}" for one in (*EXAMPLES, *EDIT_EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="(default: a picture and an edit that show what it can do)")
    parser.add_argument("--image", type=Path, help="a picture to edit, such as out/generate.png")
    options = parser.parse_args()
    if options.image and not options.image.is_file():
        parser.error(f"--image must be a file, and there is none at {options.image}")
    if options.image and not options.prompt:
        parser.error("--image needs a prompt that says what to change, such as: " + EDIT_EXAMPLES[0])
    return options


def own_job(prompt: str, image: Path | None) -> dict[str, dict]:
    if image is None:
        return {"generate": {"prompt": prompt, **DRAWN, **COMMON}}
    picture = base64.b64encode(image.read_bytes()).decode()
    return {"edit": {"task": "edit", "prompt": prompt, "image": picture, **COMMON}}


def vocabulary() -> set[str]:
    """The words that the tiny checkpoint was trained on."""
    return {word for line in wordings.corpus() for word in words_of(line)} - {"x"}


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def unknown_words(prompt: str) -> list[str]:
    """The prompt's words that the tiny checkpoint does not know, each once."""
    known = vocabulary()
    return list(dict.fromkeys(word for word in words_of(prompt) if word not in known))


def explain_vocabulary(unknown: list[str]) -> None:
    sizes = [one for words in wordings.SIZE_WORDS.values() for one in words]
    places = [words[0] for words in wordings.POSITION_WORDS.values()]
    console.print(
        f"The tiny checkpoint does not know: {', '.join(unknown)}. It draws one shape on a plain background, so do not "
        "expect what you asked for. Its words are:",
        style="yellow",
        markup=False,
    )
    kinds = {"colours": wordings.COLOURS, "shapes": wordings.SHAPES, "sizes": sizes, "places": places}
    for name, words in kinds.items():
        console.print(f"  {name:<8} {', '.join(words)}")
    console.print("Prompts to try:")
    for example in EXAMPLES:
        console.print(f'  make run PROMPT="{example}"', markup=False)


def address_of(server: subprocess.Popen) -> str:
    """The endpoint's URL, once it listens."""
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"http://[\w.]+:\d+", line):
            return f"{found[0]}/v2/local"
    sys.exit(f"The endpoint ended with exit code {server.wait()} before it answered.")


def draw(url: str, name: str, fields: dict) -> None:
    """Send one job, show its progress, save its pictures."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{name}: loading", total=None)
        job = wait_for(url, fields, lambda message: show(bar, task, name, message))
    if job["status"] != "COMPLETED":
        sys.exit(f"The {name} job is {job['status']}: {job.get('error', 'no reason given')}")
    OUT.mkdir(exist_ok=True)
    output = job["output"]
    facts = output["metadata"]
    file = OUT / f"{name}.{facts['output_format']}"
    file.write_bytes(base64.b64decode(output["image"]))
    timings = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["timings"].items())
    console.print(
        f"{output['message']}: {file.relative_to(ROOT)} ({facts['dimensions']}, backend {facts['backend']}, {timings})"
    )
    for warning in facts.get("warnings", ()):
        console.print(f"  {warning}", style="yellow", markup=False)


def wait_for(url: str, fields: dict, on_progress: Callable[[dict], None]) -> dict:
    """The job, once it has ended."""
    job = posted(f"{url}/run", {"input": fields})
    changed, last = time.monotonic(), None
    while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
        time.sleep(POLL_SECONDS)
        job = requests.get(f"{url}/status/{job['id']}", timeout=30).json()
        message = job.get("output") if job["status"] == "IN_PROGRESS" else None
        if (job["status"], message) != last:
            changed, last = time.monotonic(), (job["status"], message)
        if message:
            on_progress(message)
        if time.monotonic() - changed > PATIENCE:
            sys.exit(f"The job is {job['status']}, and nothing has changed for {PATIENCE} seconds.")
    return job


def posted(url: str, body: dict) -> dict:
    answer = requests.post(url, json=body, timeout=30)
    if not answer.ok:
        sys.exit(f"The endpoint answered {answer.status_code}: {answer.text[:500]}")
    return answer.json()


def show(bar: Progress, task, name: str, message: dict) -> None:
    """A terminal gets a bar, anything else a line for each stage."""
    stage = f"{name}: {message['stage']}"
    if stage != bar.tasks[0].description and not console.is_terminal:
        console.print(f"  {stage}")
    bar.update(task, description=stage, completed=message["step"], total=message["total"])


if __name__ == "__main__":
    main()
