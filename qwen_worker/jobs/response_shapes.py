"""A reply in the shape that clients of other image APIs read, so that they need no other code for this worker.

Each shape has the names of its API's own documentation, and beside them the worker's own `metadata`. Pictures are URLs
in all of them: a bucket's, or `data:` URLs with the file itself. A stand-in has no place in them, since these clients
know no field that tells it from a picture. Errors have no shape: RunPod's SDK makes a failed job of them. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired

from typing_extensions import TypedDict  # see `reply.py`

from ..delivery_settings import ResponseShape
from .reply import Metadata, success_reply

if TYPE_CHECKING:
    from ..settings import Settings
    from .request import Drawing


@dataclass(frozen=True)
class Files:
    """A job's pictures on their way: each its file in base64 or, with `by_url`, its URL in a bucket."""

    texts: list[str]
    content_type: str
    by_url: bool = False

    @property
    def urls(self) -> list[str]:
        """A URL for each; of a file in base64 one that holds the file."""
        return self.texts if self.by_url else [f"data:{self.content_type};base64,{text}" for text in self.texts]


class RunpodPublicReply(TypedDict):
    """The reply in the shape of RunPod's public endpoints."""

    image_url: str
    result: str
    image_urls: NotRequired[list[str]]
    metadata: Metadata


class FalImage(TypedDict):
    """A picture as fal's image models name it."""

    url: str
    width: int
    height: int
    content_type: str


class FalReply(TypedDict):
    """The reply in the shape of fal's image models."""

    images: list[FalImage]
    seed: int
    timings: dict[str, float]
    prompt: str
    has_nsfw_concepts: NotRequired[list[bool]]
    metadata: Metadata


class ReplicateMetrics(TypedDict):
    """What a prediction of Replicate has taken."""

    predict_time: float  # seconds


class ReplicateReply(TypedDict):
    """The reply in the shape of a prediction of Replicate."""

    status: Literal["succeeded"]
    output: list[str]
    model: str
    version: str | None
    metrics: ReplicateMetrics
    metadata: Metadata


def shape_of(request: "Drawing", settings: "Settings") -> ResponseShape:
    """The shape that the job asks for, or else the endpoint's."""
    return ResponseShape(request.response_shape) if request.response_shape else settings.QWEN_RESPONSE_SHAPE


def shaped_reply(shape: ResponseShape, request: "Drawing", metadata: Metadata, files: Files) -> dict[str, Any]:
    """The reply of a job that drew. `files`: at least one."""
    if shape is ResponseShape.WORKER:
        return success_reply(request, metadata, files.texts, "image_url" if files.by_url else "image")
    return dict(FOREIGN[shape](files, metadata))


def runpod_public(files: Files, metadata: Metadata) -> RunpodPublicReply:
    """As RunPod's public endpoints: some have the URL as `image_url`, others as `result`, and their client reads both.

    They draw one picture a job. Of several the list is here as in the worker's own shape.
    """
    urls = files.urls
    reply: RunpodPublicReply = {"image_url": urls[0], "result": urls[0], "metadata": metadata}
    if len(urls) > 1:
        reply["image_urls"] = urls
    return reply


def fal(files: Files, metadata: Metadata) -> FalReply:
    """As fal's image models. `has_nsfw_concepts` is there only where somebody has looked at the pictures."""
    width, height, content_type = metadata["width"], metadata["height"], files.content_type
    reply: FalReply = {
        "images": [{"url": url, "width": width, "height": height, "content_type": content_type} for url in files.urls],
        "seed": metadata["seed"],
        "timings": metadata["timings"],
        "prompt": metadata["prompt"],
        "metadata": metadata,
    }
    if "has_nsfw_concepts" in metadata:
        reply["has_nsfw_concepts"] = metadata["has_nsfw_concepts"]
    return reply


def replicate(files: Files, metadata: Metadata) -> ReplicateReply:
    """As a prediction of Replicate, without what only its platform knows: ids, dates, logs, URLs of its API.

    Without `input` too, which would repeat the caller's pictures, and without `error`, which RunPod's SDK takes out.
    """
    return {
        "status": "succeeded",
        "output": files.urls,
        "model": metadata["model"],
        "version": metadata["revision"],
        "metrics": {"predict_time": metadata["processing_time"]},
        "metadata": metadata,
    }


FOREIGN: dict[ResponseShape, Callable[[Files, Metadata], Mapping[str, Any]]] = {
    ResponseShape.RUNPOD_PUBLIC: runpod_public,
    ResponseShape.FAL: fal,
    ResponseShape.REPLICATE: replicate,
}
