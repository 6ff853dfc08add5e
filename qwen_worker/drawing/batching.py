"""Which jobs are drawn together: small pictures of one job or several share a call, where that is asked for.

A picture well below a megapixel does not fill a GPU: published figures are 1.8 times the pictures a second with two of
512 x 512 in a call and 2.8 times with four, but 1.02 with two of 1024 x 1024. A call takes a megapixel in all: beyond,
little is gained (3.2 times with sixteen), and so it needs the memory of one picture of 1024 x 1024, for which every
plan has room. Edits are drawn alone: whatever their size, they see a megapixel of input. Knows nothing of how a call is
made: `shared_call.py` does.
"""

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import TypeGuard

from ..errors import Cancelled
from ..jobs.job import Stage
from ..jobs.reply import DrawingResult
from ..jobs.request import Drawing, Generate
from ..loading.loaded import LoadedPipeline
from ..log import log_line
from ..memory.footprint import MEGAPIXEL
from ..model_settings import Gpus
from . import inference, job_plan
from .configured import splits_rows
from .prompt_cache import PromptCache
from .queue import DrawingJob, WaitingQueue
from .shared_call import EncodedPrompts, draw_together, encode

# The fields that may differ between the jobs of a call; all others must be equal.
OWN_FIELDS = {
    "prompt", "negative_prompt", "seed", "num_images", "output_format", "output_quality", "delivery", "response_shape",
    "prompt_extend", "enable_safety_checker", "background",
}  # fmt: skip


CARDS = 2  # each draws one picture of a call, where there is no guidance to share


class Batches:
    """`max_pictures`: that may share a card's call; 1 for none. `gpus`: that the endpoint asks for.

    Everything but `fewest_calls` is for the inference thread.
    """

    def __init__(self, queue: WaitingQueue, max_pictures: int, gpus: Gpus = Gpus.ONE):
        self.queue, self.max_pictures, self.gpus = queue, max_pictures, gpus
        self.max_pixels = MEGAPIXEL  # of a call; halved when one runs out of memory

    def fewest_calls(self, request: Drawing) -> int:
        """In how few calls the request's pictures could be drawn."""
        pictures = CARDS if self.gpus is not Gpus.ONE and request.guidance_scale <= 1 else 1
        if may_share(request):  # which it does on one card, where the second cannot be used
            shared = min(self.max_pictures, self.max_pixels // (request.width * request.height))
            pictures = max(pictures, shared)
        return math.ceil(request.num_images / pictures)

    def draw(self, loaded: LoadedPipeline, entry: DrawingJob, prompt_cache: PromptCache) -> DrawingResult | None:
        """The job's pictures, and in the same call those of waiting jobs that can share it, which leave the queue.

        None where the job has to be drawn by itself: it cannot share a call, or a call that it shared has failed. Where
        the job is stopped during the call, the call goes on for the others. Raises `Cancelled` where the job was
        stopped before, or all of the jobs were.
        """
        pictures = self.pictures_per_call(loaded, entry)
        if entry.alone or pictures < 2:
            return None
        drawn: dict[DrawingJob, DrawingResult] = {}
        joined: list[DrawingJob] = []
        try:
            with self.alone_after_failure(entry, joined):
                encoded = self.gather(loaded, entry, prompt_cache, pictures, joined)
                entry.job.require_running()
                drawn = draw_together(loaded, encoded, pictures, rows_apart=splits_rows(loaded, entry.job.request))
        finally:
            for other in joined:
                self.end_shared_call(other, drawn.get(other))
        return drawn.get(entry)

    def pictures_per_call(self, loaded: LoadedPipeline, entry: DrawingJob) -> int:
        """How many pictures such as the job's a call may draw."""
        request = entry.job.request
        if not may_share(request) or loaded.checkpoint.class_name != "QwenImagePipeline":
            return 1
        plan = job_plan.plan_for(entry, loaded.plan, loaded)
        if splits_rows(loaded, request):
            return 1 if plan.needs_tiles(request.width, request.height) else CARDS
        return plan.pictures_per_call(request.width, request.height, self.max_pictures, self.max_pixels)

    def gather(
        self,
        loaded: LoadedPipeline,
        leader: DrawingJob,
        prompt_cache: PromptCache,
        max_pictures: int,
        joined: list[DrawingJob],
    ) -> dict[DrawingJob, EncodedPrompts]:
        """The encoded prompts of the job, and of waiting jobs while there is room, the oldest first.

        No job is waited for, but one that comes while others' prompts are encoded is in time. `joined` takes those that
        share the call.
        """
        encoded = {leader: encode(loaded, leader, prompt_cache)}

        def fits(other: DrawingJob) -> bool:
            pictures = sum(entry.job.request.num_images for entry in encoded) + other.job.request.num_images
            able = not other.alone and not other.job.cancelled.is_set() and other not in encoded
            # What a LoRA's path leads to may have changed from one job to the other.
            same = are_alike(leader.job.request, other.job.request) and lora_keys(leader) == lora_keys(other)
            return able and pictures <= max_pictures and same

        while other := self.queue.oldest(fits):
            # A prompt that cannot be encoded is its own job's failure, in its own turn.
            with suppress(Cancelled), self.alone_after_failure(other):
                inference.require_drawable(loaded, other)
                prompts = encode(loaded, other, prompt_cache)
                joined.append(other)
                self.queue.enter_call(other)
                encoded[other] = prompts
        return encoded

    @contextmanager
    def alone_after_failure(self, entry: DrawingJob, joined: Iterable[DrawingJob] = ()) -> Generator[None]:
        """Within, a failure ends no job: each is drawn alone later, where only the guilty job fails again."""
        import torch

        try:
            yield
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  in company one job's failure, of any kind, is the others' too
            for other in (entry, *joined):
                other.alone = True
                other.job.start_over()
                log_line(other.job.id, "WARN", f"drawn by itself after {type(error).__name__} in company")
            if isinstance(error, torch.OutOfMemoryError):
                self.max_pixels //= 2
        # Outside the handler, where the traceback no longer holds the tensors that filled the card.
        if entry.alone and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def end_shared_call(self, entry: DrawingJob, drawn: DrawingResult | None) -> None:
        """The call that an older job led is over: a job that was drawn or stopped leaves the queue, others wait on."""
        self.queue.leave_call(entry)
        job = entry.job
        if drawn is None and not job.cancelled.is_set():
            job.stage = Stage.WAITING
            return
        job.timings |= {"load": 0.0, "inference": job.stage_seconds()}
        self.queue.finish(entry, drawn)


def may_share(request: Drawing) -> TypeGuard[Generate]:
    """Whether it may share a call; previews, starts from a picture and control pictures are one picture's alone."""
    is_alone = request.preview or request.starts_from_picture
    return isinstance(request, Generate) and not is_alone and not request.control_image


def are_alike(request: Drawing, other: Drawing) -> bool:
    """Whether pictures of both may share a call: the same task, size, steps, guidance, preset, LoRAs."""
    same_task = type(request) is type(other)
    return same_task and request.model_dump(exclude=OWN_FIELDS) == other.model_dump(exclude=OWN_FIELDS)


def lora_keys(entry: DrawingJob) -> list[str]:
    """Equal for equal LoRAs."""
    return [use.file.key for use in entry.loras]
