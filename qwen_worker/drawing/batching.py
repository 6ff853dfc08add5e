"""Which jobs are drawn together: small pictures of one job or several share a call, where that is asked for.

A picture well below a megapixel does not fill a GPU: published figures are 1.8 times the pictures a second with two of
512 x 512 in a call and 2.8 times with four, but 1.02 with two of 1024 x 1024. A call takes a megapixel in all: beyond,
little is gained (3.2 times with sixteen), and so it needs the memory of one picture of 1024 x 1024, for which every
plan has room. Edits are drawn alone: whatever their size, they see a megapixel of input. How a call is made is in
`shared_call.py`.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import Cancelled
from ..jobs.job import Stage
from ..jobs.reply import Drawn
from ..jobs.request import Drawing, Generate
from ..loading.loaded import Loaded
from ..log import log_line
from ..memory.footprint import MEGAPIXEL
from . import inference
from .prompt_cache import PromptCache
from .queue import DrawingJob, WaitingQueue
from .shared_call import Encoded, draw_together, encode

# What a job may have of its own; in every other field the jobs of a call are equal.
OWN_FIELDS = {"prompt", "negative_prompt", "seed", "num_images", "output_format", "output_quality", "delivery"}


class Batches:
    """`most`: pictures that may share a call; 1 for none. Everything but `fewest_calls` is for the inference thread."""

    def __init__(self, queue: WaitingQueue, most: int):
        self.queue, self.most = queue, most
        self.pixels = MEGAPIXEL  # of a call; halved when one runs out of memory

    def fewest_calls(self, request: Drawing) -> int:
        """In how few calls the request's pictures could be drawn."""
        room = min(self.most, self.pixels // (request.width * request.height)) if may_share(request) else 1
        return math.ceil(request.num_images / max(1, room))

    def draw(self, loaded: Loaded, entry: DrawingJob, prompts: PromptCache) -> Drawn | None:
        """The job's pictures, and in the same call those of waiting jobs that can share it, which leave the queue.

        None where it has to be drawn by itself: it cannot share, or a call that it shared has failed. Stopped during
        the call, the call goes on for the others. Raises `Cancelled` where it was stopped before, or all of them were.
        """
        room = self.room(loaded, entry)
        if entry.alone or room < 2:
            return None
        drawn: dict[DrawingJob, Drawn] = {}
        joined: list[DrawingJob] = []
        try:
            with self.parted_on_failure(entry, joined):
                encoded = self.gather(loaded, entry, prompts, room, joined)
                entry.job.require_running()
                drawn = draw_together(loaded, encoded, room)
        finally:
            for other in joined:
                self.part(other, drawn.get(other))
        return drawn.get(entry)

    def room(self, loaded: Loaded, entry: DrawingJob) -> int:
        """How many pictures such as the job's a call may draw."""
        request = entry.job.request
        if not may_share(request) or loaded.checkpoint.class_name != "QwenImagePipeline":
            return 1
        plan = inference.plan_for(entry, loaded.plan)
        return plan.pictures_per_call(request.width, request.height, self.most, self.pixels)

    def gather(
        self, loaded: Loaded, leader: DrawingJob, prompts: PromptCache, room: int, joined: list[DrawingJob]
    ) -> dict[DrawingJob, Encoded]:
        """The encoded prompts of the job, and of waiting ones while there is room, the oldest first.

        Nobody is waited for, but a job that comes while others' prompts are encoded is in time. `joined` takes those
        that share the call.
        """
        encoded = {leader: encode(loaded, leader, prompts)}

        def fits(other: DrawingJob) -> bool:
            pictures = sum(entry.job.request.num_images for entry in encoded) + other.job.request.num_images
            able = not other.alone and not other.job.cancelled.is_set() and other not in encoded
            # What a LoRA's path leads to may have changed from one job to the other.
            same = alike(leader.job.request, other.job.request) and lora_keys(leader) == lora_keys(other)
            return able and pictures <= room and same

        while other := self.queue.oldest(fits):
            # A prompt that cannot be encoded is its own job's failure, in its own turn.
            with suppress(Cancelled), self.parted_on_failure(other):
                inference.require_drawable(loaded, other)
                prompt = encode(loaded, other, prompts)
                joined.append(other)
                self.queue.enter_call(other)
                encoded[other] = prompt
        return encoded

    @contextmanager
    def parted_on_failure(self, entry: DrawingJob, joined: Iterable[DrawingJob] = ()) -> Iterator[None]:
        """What fails within ends no job: each is drawn alone then, where only the guilty one's failure is told."""
        import torch

        try:
            yield
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  in company one job's failure, of any kind, is the others' too
            for one in (entry, *joined):
                one.alone = True
                one.job.start_over()
                log_line(one.job.id, "WARN", f"drawn by itself after {type(error).__name__} in company")
            if isinstance(error, torch.OutOfMemoryError):
                self.pixels //= 2
        # Outside the handler, where the traceback no longer holds the tensors that filled the card.
        if entry.alone and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def part(self, entry: DrawingJob, drawn: Drawn | None) -> None:
        """The end of a call that another job led: who was drawn or stopped leaves the queue, any other waits on."""
        self.queue.leave_call(entry)
        job = entry.job
        if drawn is None and not job.cancelled.is_set():
            job.stage = Stage.WAITING
            return
        job.timings |= {"load": 0.0, "inference": job.stage_seconds()}
        self.queue.finish(entry, drawn)


def may_share(request: Drawing) -> bool:
    """Whether it is of the kind that can share a call; previews are of one picture at a time."""
    return isinstance(request, Generate) and not request.preview


def alike(one: Drawing, other: Drawing) -> bool:
    """Whether pictures of both may share a call: the same task, size, steps, guidance, preset, LoRAs."""
    return type(one) is type(other) and one.model_dump(exclude=OWN_FIELDS) == other.model_dump(exclude=OWN_FIELDS)


def lora_keys(entry: DrawingJob) -> list[str]:
    """Equal for equal LoRAs."""
    return [use.file.key for use in entry.loras]
