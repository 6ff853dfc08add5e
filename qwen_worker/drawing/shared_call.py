"""One call of the text-to-image pipeline for the pictures of several jobs.

Each picture is what it is alone up to rounding: its noise comes from its own seed, prompts are encoded one by one, and
the shorter ones are padded with tokens that the attention masks and that move no other's position. The modulation table
gives every row of a call what it gives one alone. Imports torch inside functions. Which jobs those are is decided in
`batching.py`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from PIL import Image

from ..errors import Cancelled
from ..jobs.job import Job
from ..jobs.reply import Drawn
from ..jobs.request import Drawing
from ..loading.pipelines import Loaded
from ..memory.cuda import peak_vram_gb
from ..pictures.images import to_rgb
from . import inference
from .configured import regime
from .prompt_cache import PromptCache

Encoded = dict[str, tuple[Any, Any]]  # of prompt and negative_prompt: embeddings (1, tokens, dim), mask (1, tokens)
PROMPTS = ("prompt", "negative_prompt")


def arguments(loaded: Loaded, request: Drawing) -> dict[str, Any]:
    return inference.arguments(loaded.pipe, request, [], (request.width, request.height))


def encode(loaded: Loaded, job: Job, prompts: PromptCache) -> Encoded:
    """The job's prompts as the pipeline encodes them for it alone; no negative one without guidance.

    Raises `Cancelled` at the end of the call in which the job is stopped.
    """
    import torch

    pipe, call = loaded.pipe, arguments(loaded, job.request)
    # The pipeline's own arguments to the letter: what was encoded for a job drawn alone is found in the cache.
    common = {"prompt_embeds": None, "prompt_embeds_mask": None, "device": pipe._execution_device}
    common |= {"num_images_per_prompt": 1, "max_sequence_length": call["max_sequence_length"]}
    with torch.no_grad(), prompts.around(pipe, job.require_running):
        return {name: pipe.encode_prompt(prompt=call[name], **common) for name in PROMPTS if name in call}


def draw_together(loaded: Loaded, encoded: dict[Job, Encoded], room: int) -> dict[Job, Drawn]:
    """Every job's pictures, `room` of them a call. Raises `Cancelled` within a step once all jobs are stopped."""
    wanted = [(job, number) for job in encoded for number in range(job.request.num_images)]
    calls = [wanted[start : start + room] for start in range(0, len(wanted), room)]
    pictures: dict[Job, list[Image.Image]] = {job: [] for job in encoded}
    steps = 0
    with regime(loaded, wanted[0][0]):
        for call in calls:
            images, steps = draw_call(loaded, encoded, call)
            for (job, _), image in zip(call, images, strict=True):
                pictures[job].append(to_rgb(image))
            require_any_running(encoded)
    peak = peak_vram_gb()
    return {job: Drawn(found, steps, loaded.drawer, None, peak, len(calls[0])) for job, found in pictures.items()}


def draw_call(
    loaded: Loaded, encoded: dict[Job, Encoded], call: list[tuple[Job, int]]
) -> tuple[list[Image.Image], int]:
    """The pictures of one call, each given by its job and its number there from 0, and the steps that it took.

    The rows of a job that is stopped meanwhile stay in: without them the others' would round differently.
    """
    import torch

    pipe, given = loaded.pipe, arguments(loaded, call[0][0].request)
    for name in PROMPTS:
        if given.pop(name, None) is not None:
            embeddings, mask = padded([encoded[job][name] for job, _ in call])
            given |= {f"{name}_embeds": embeddings, f"{name}_embeds_mask": mask}
    # A CPU generator draws the same noise whatever the card.
    generators = [torch.Generator("cpu").manual_seed(job.request.seeds[number]) for job, number in call]
    first, counts = dict(reversed(call)), Counter(job for job, _ in call)

    def after_step(_pipe, step: int, _timestep, tensors: dict) -> dict:
        for job, count in counts.items():
            job.step_ends(step + 1, pipe.num_timesteps, first[job], count)
        require_any_running(encoded)
        return tensors

    for job in counts:
        job.picture_begins()
    with inference.left_clean(pipe):
        images = pipe(**given, generator=generators, callback_on_step_end=after_step).images
    return images, pipe.num_timesteps


def require_any_running(jobs: Iterable[Job]) -> None:
    """Raises `Cancelled` where all of them have been stopped."""
    if all(job.cancelled.is_set() for job in jobs):
        raise Cancelled


def padded(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Encoded prompts, one a row: (rows, tokens, dim) with zeros after the shorter ones; the mask, (rows, tokens)."""
    import torch

    longest = max(embeddings.shape[1] for embeddings, _ in parts)
    rows, masks = [], []
    for embeddings, mask in parts:
        tokens = embeddings.shape[1]
        if mask is None:  # none of its tokens is padding
            mask = torch.ones(1, tokens, dtype=torch.long, device=embeddings.device)
        rows.append(torch.nn.functional.pad(embeddings, (0, 0, 0, longest - tokens)))
        masks.append(torch.nn.functional.pad(mask, (0, longest - tokens)))
    return torch.cat(rows), torch.cat(masks)
