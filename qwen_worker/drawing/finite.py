"""Whether a drawing came to numbers: NaN in its last latents or in what the VAE makes of them is no picture.

Pillow would get one flat colour, and the job would be a success. Nothing is waited for between the steps: the card
compares while it draws, and is asked when the picture is on the host anyway. Knows nothing of what follows.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInput, JobError
from ..loading.loaded import LoadedPipeline

if TYPE_CHECKING:
    import torch

LASTING_FAILURES = 2  # jobs in a row whose pictures came to no numbers: a fresh worker may do better


class NotFinite(ArithmeticError):
    """A picture's numbers are NaN or infinite."""


class FiniteCheck:
    """Within, the VAE's pictures are watched, of the pipeline's call that is made."""

    def __init__(self, pipe: Any):
        self.decoder: Any = getattr(pipe.vae, "decoder", None)
        self.latents: torch.Tensor | None = None
        # Of what was decoded after the last step, whether it is finite: () on the device.
        self.answers: list[torch.Tensor] = []

    def __enter__(self) -> "FiniteCheck":
        self.hook = self.decoder.register_forward_hook(self.after_decoding) if self.decoder else None
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.hook:
            self.hook.remove()

    def after_step(self, latents: "torch.Tensor") -> None:
        """Remember the latents of the last step so far. What was decoded before were previews."""
        self.latents = latents
        self.answers.clear()

    def after_decoding(self, _module: Any, _inputs: Any, decoded: "torch.Tensor") -> None:
        self.answers.append(decoded.isfinite().all())

    def require_numbers(self) -> None:
        """Raises `NotFinite` for latents or a picture that hold NaN or infinity; waits for the card."""
        if self.latents is not None and not self.latents.isfinite().all():
            raise NotFinite("the last latents hold NaN or infinity")
        if not all(self.answers):
            raise NotFinite("the VAE has decoded sound latents to NaN or infinity")


def failed_job_error(loaded: LoadedPipeline, job_id: str, reason: str, has_loras: bool) -> JobError:
    """The error of a job that failed by the plainest way too; where its numbers did, with a word about them.

    `reason`: the failure's, in words. `has_loras`: whether the job brought LoRAs, whose numbers are at fault then.
    After some such jobs in a row without any, a fresh worker is asked for.
    """
    if not reason.startswith(NotFinite.__name__):
        return JobError("internal", job_id)
    words = reason.partition(": ")[2]
    if has_loras:
        return InvalidInput(f"loras change the model so much that no picture came about ({words}): give a lower scale")
    loaded.not_finite.append(job_id)
    return JobError("internal", f"{job_id}: no picture came about, {words}", len(loaded.not_finite) >= LASTING_FAILURES)
