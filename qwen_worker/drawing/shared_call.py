"""One call of the text-to-image pipeline for the pictures of several jobs.

Each picture is what it is alone up to rounding: its noise comes from its own seed, prompts are encoded one by one, and
the shorter ones are padded with tokens that the attention masks and that move no other token's position. The modulation
table gives every row of a call the rows that it gives a picture alone. Imports torch inside functions. Knows nothing of
which jobs share a call: `batching.py` decides that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from ..errors import Cancelled
from ..jobs.reply import DrawingResult
from ..loading.loaded import LoadedPipeline
from ..memory.cuda import peak_vram_gb
from ..pictures.images import to_rgb
from . import job_plan, pipeline_call
from .configured import configured
from .finite import FiniteCheck
from .prompt_cache import PromptCache
from .queue import DrawingJob

PROMPTS = ("prompt", "negative_prompt")
Encoding = tuple[Any, Any]  # of one prompt: embeddings (1, tokens, dim), and mask (1, tokens) or None
EncodedPrompts = dict[str, Encoding]  # by the names in `PROMPTS`


def encode(loaded: LoadedPipeline, entry: DrawingJob, prompt_cache: PromptCache) -> EncodedPrompts:
    """The job's prompts as the pipeline encodes them for it alone; no negative one without guidance.

    Raises `Cancelled` at the end of the call in which the job is stopped.
    """
    import torch

    pipe, call = loaded.pipe, pipeline_call.call_arguments(loaded.pipe, entry.job, entry.canvas)
    # The pipeline's own arguments to the letter, so that the cache has what was encoded for a job drawn alone.
    common = {"prompt_embeds": None, "prompt_embeds_mask": None, "device": pipe._execution_device}
    common |= {"num_images_per_prompt": 1, "max_sequence_length": call["max_sequence_length"]}
    with torch.no_grad(), prompt_cache.caching(pipe, entry.job.require_running):
        return {name: pipe.encode_prompt(prompt=call[name], **common) for name in PROMPTS if name in call}


def draw_together(
    loaded: LoadedPipeline,
    encoded: Mapping[DrawingJob, EncodedPrompts],
    pictures_per_call: int,
    rows_apart: bool = False,
) -> dict[DrawingJob, DrawingResult]:
    """Every job's pictures, so many of them in a call; of two, if `rows_apart`, each on a card of its own.

    Raises `Cancelled` within a step once all jobs are stopped.
    """
    numbers = [(entry, number) for entry in encoded for number in range(entry.job.request.num_images)]
    calls = [numbers[start : start + pictures_per_call] for start in range(0, len(numbers), pictures_per_call)]
    pictures: dict[DrawingJob, list[Image.Image]] = {entry: [] for entry in encoded}
    steps, leader = 0, numbers[0][0]
    plan = job_plan.plan_for(leader, loaded.plan, loaded)
    passes_before = loaded.second_card_passes
    with configured(loaded, leader.job.request, leader.loras, plan, rows_apart=rows_apart):
        for call in calls:
            images, steps = draw_call(loaded, encoded, call)
            for (entry, _), image in zip(call, images, strict=True):
                pictures[entry].append(to_rgb(image))
            require_any_running(encoded)
    loaded.not_finite.clear()
    model, peak, count = loaded.drawing_model, peak_vram_gb(), len(calls[0])
    gpus = 1 + (loaded.second_card_passes > passes_before)
    return {
        entry: DrawingResult(entry_pictures, steps, model, peak_vram_gb=peak, batch=count, gpus=gpus)
        for entry, entry_pictures in pictures.items()
    }


def draw_call(
    loaded: LoadedPipeline, encoded: Mapping[DrawingJob, EncodedPrompts], call: Sequence[tuple[DrawingJob, int]]
) -> tuple[list[Image.Image], int]:
    """The pictures of one call, and the steps that it took. `call`: each picture's job, and its number there from 0.

    The rows of a job that is stopped meanwhile stay in the call: without them the others' would round differently.
    """
    import torch

    pipe, leader = loaded.pipe, call[0][0]
    arguments = pipeline_call.call_arguments(pipe, leader.job, leader.canvas)
    for name in PROMPTS:
        if arguments.pop(name, None) is not None:
            embeddings, mask = pad([encoded[entry][name] for entry, _ in call])
            arguments |= {f"{name}_embeds": embeddings, f"{name}_embeds_mask": mask}
    # A CPU generator draws the same noise whatever the card.
    generators = [torch.Generator("cpu").manual_seed(entry.job.request.seeds[number]) for entry, number in call]
    first, counts = dict(reversed(call)), Counter(entry for entry, _ in call)

    def after_step(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for entry in counts:
            entry.job.end_step(step + 1, pipe.num_timesteps)
        require_any_running(encoded)
        check.after_step(tensors["latents"])
        return tensors

    for entry, count in counts.items():
        entry.job.begin_drawing(first[entry], count)
    with pipeline_call.cleaning_up(pipe), FiniteCheck(pipe) as check:
        images = pipe(**arguments, generator=generators, callback_on_step_end=after_step).images
        check.require_numbers()
    return images, pipe.num_timesteps


def require_any_running(entries: Iterable[DrawingJob]) -> None:
    """Raises `Cancelled` where all of them have been stopped."""
    if all(entry.job.cancelled.is_set() for entry in entries):
        raise Cancelled


def pad(encodings: Sequence[Encoding]) -> tuple[Any, Any]:
    """Encoded prompts, one a row: (rows, tokens, dim) with zeros after the shorter ones; the mask, (rows, tokens)."""
    import torch

    longest = max(embeddings.shape[1] for embeddings, _ in encodings)
    rows: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    for embeddings, mask in encodings:
        tokens = embeddings.shape[1]
        if mask is None:  # none of its tokens is padding
            mask = torch.ones(1, tokens, dtype=torch.long, device=embeddings.device)
        rows.append(torch.nn.functional.pad(embeddings, (0, 0, 0, longest - tokens)))
        masks.append(torch.nn.functional.pad(mask, (0, longest - tokens)))
    return torch.cat(rows), torch.cat(masks)
