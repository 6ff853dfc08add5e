"""How a job's pictures reach its caller: in the reply or by URL from a bucket, as the job asks or as it fits.

The platform drops a result that is too large without a word, so the body that the SDK will post is measured, byte for
byte, before it is sent. Knows nothing of how the pictures came about, nor of how a bucket is spoken to (`upload.py`).
"""

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..delivery_settings import Delivery, ResponseShape
from ..errors import Cancelled, InvalidInput, JobError
from ..jobs.reply import DeliveryFacts, Metadata, posted_bytes
from ..jobs.request import Drawing
from ..jobs.response_shapes import Files, shape_of, shaped_reply
from ..network.bucket import Bucket, bucket_from_job
from ..network.upload import File, UploadFailed, require_public, upload_files
from ..settings import Settings
from ..stopwatch import timed
from .encoding import JPEG_QUALITY, encode_picture
from .signing import Sign

if TYPE_CHECKING:
    from pydantic import JsonValue

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
# The qualities of lossy WebP that output_format auto tries in turn, down to the job's output_quality.
QUALITIES = (95, 85)
LOWEST_QUALITY = 75  # where the job sets none
# Bytes for each pixel: the mean of eleven photographs, of which single ones have a fifth of it or nearly twice as much.
# Noise has twice as much in lossless files, and up to six times in others. It is no limit: what a picture really has is
# known when it is drawn.
LOSSLESS_RATES = {"png": 1.7, "webp": 1.3}
LOSSY_RATES = {  # by quality
    "jpeg": {1: 0.03, 50: 0.11, 75: 0.16, 90: 0.27, 95: 0.39, 100: 0.74},
    "webp": {1: 0.03, 50: 0.08, 75: 0.11, 90: 0.23, 95: 0.32, 100: 0.43},
}
LEAST_RATES = {"png": 0.014, "jpeg": 0.0158, "webp": 0.0001}  # of a picture of one colour: no file has less
BASE64 = 4 / 3  # characters for each byte
SMALLER = "fewer images or a smaller size"
# Code that reads `image_url` and nothing else, such as RunPod's provider of the AI SDK, would take one for a picture.
STAND_IN_NOTE = "stand-ins are sent in the reply and never by URL"


@dataclass(frozen=True)
class Terms:
    """How one job's pictures are delivered, by its own fields and the operator's settings."""

    mode: Delivery
    bucket: Bucket | None
    limit_bytes: int  # of the reply as JSON
    upload_seconds: float
    job_id: str
    shape: ResponseShape


def terms_of(
    job: "Mapping[str, JsonValue]",
    request: Drawing,
    settings: Settings,
    limit_bytes: int,
    operator_bucket: Bucket | None,
) -> Terms:
    """The terms of a job; one with a bucket of its own gets URLs from it unless it says otherwise.

    In the shapes of other APIs, whose clients read URLs, `auto` is a bucket's URL wherever there is a bucket.

    `job`: as the SDK hands it out. Raises `InvalidInput` for an `s3Config` that cannot be used and for URLs without a
    bucket.
    """
    s3_config = job.get("s3Config") or None  # an empty object counts as none
    bucket = operator_bucket if s3_config is None else bucket_from_job(s3_config, settings)
    default = settings.QWEN_DELIVERY if s3_config is None else Delivery.URL
    mode = Delivery(request.delivery) if request.delivery else default
    if mode is Delivery.URL and bucket is None:
        raise InvalidInput(
            "delivery 'url' needs a bucket, and neither the job's s3Config nor the endpoint's BUCKET_* names one; send "
            "delivery 'inline', which OpenAI's clients call response_format 'b64_json', for pictures in the reply"
        )
    bucket = None if mode is Delivery.INLINE else bucket
    shape = shape_of(request, settings)
    if bucket and shape is not ResponseShape.WORKER:
        mode = Delivery.URL
    return Terms(mode, bucket, limit_bytes, settings.QWEN_UPLOAD_SECONDS, str(job.get("id")), shape)


def require_usable(terms: Terms, cancelled: threading.Event) -> None:
    """Refuse a job's own bucket at an address that jobs may not reach, before anything is drawn.

    Resolves the bucket's host. Raises `InvalidInput`, or `Cancelled`.
    """
    if terms.bucket and terms.bucket.restricted:
        require_public(terms.bucket, terms.upload_seconds, cancelled)


def size_warning(request: Drawing, size: tuple[int, int], terms: Terms) -> str | None:
    """What to tell a caller before pictures are drawn that may be too large for a reply, None where they hardly are.

    `size`: of each, in pixels. Of `auto` the smallest encoding counts. Raises `JobError` result_too_large where even
    pictures of one colour would be too large.
    """
    if terms.bucket:
        return None
    width, height = size
    # RunPod's shape holds the first picture under two names, and of several so does the worker's own.
    several = request.num_images > 1
    is_twice = terms.shape is ResponseShape.RUNPOD_PUBLIC or (terms.shape is ResponseShape.WORKER and several)
    count = request.num_images + is_twice
    characters = count * width * height * BASE64
    *_, (output_format, quality) = encodings(request)
    pictures = f"{request.num_images} picture{'s' * several} of {width}x{height}"
    limit = f"of which at most {terms.limit_bytes / 1e6:g} MB are delivered"
    if (least := characters * LEAST_RATES[output_format]) > terms.limit_bytes:
        sentence = f"{pictures} would have at least {least / 1e6:.2g} MB in the reply, {limit}"
        raise JobError("result_too_large", f"{sentence}; ask for {SMALLER}, or give a bucket")
    expected = characters * photo_rate(output_format, quality)
    if expected <= terms.limit_bytes:
        return None
    is_auto = request.output_format == "auto"
    way = f"ask for {SMALLER}, or give a bucket" if is_auto else "auto takes a smaller encoding where that is so"
    at_least = " in its smallest encoding" if is_auto else ""
    sentence = f"output_format {request.output_format}: {pictures} may have {expected / 1e6:.2g} MB in the reply"
    return f"{sentence}{at_least}, {limit}; {way}"


def photo_rate(output_format: str, quality: int | None) -> float:
    """The bytes that a photograph has for each pixel, about."""
    if output_format == "png" or (output_format == "webp" and quality is None):
        return LOSSLESS_RATES[output_format]
    import numpy as np

    rates = LOSSY_RATES[output_format]
    return float(np.interp(quality or JPEG_QUALITY, list(rates), list(rates.values())))


def encodings(request: Drawing) -> Iterator[tuple[str, int | None]]:
    """(format, quality) as asked for, or, for `auto`, from the largest to the smallest that the job allows."""
    if request.output_format != "auto":
        yield request.output_format, request.output_quality
        return
    lowest = request.output_quality or LOWEST_QUALITY
    yield "png", None
    yield "webp", None  # lossless
    for quality in (*(quality for quality in QUALITIES if quality > lowest), lowest):
        yield "webp", quality


def deliver(
    request: Drawing,
    pictures: list[Image.Image],
    terms: Terms,
    complete_metadata: Callable[[DeliveryFacts], Metadata],
    timings: dict[str, float],
    cancelled: threading.Event,
    sign: Sign | None = None,
) -> dict[str, Any]:
    """The reply, of at most `terms.limit_bytes` as the SDK will post it. Stand-ins stay in it: no bucket gets one.

    `complete_metadata(delivery)` adds the delivery's facts and the timings so far to the metadata. `sign`: what signs
    each file, where the operator has files signed.
    Raises `JobError` result_too_large or upload_failed with both figures, or `Cancelled`.
    """
    bucket, note, smallest = terms.bucket, "", 0
    for attempt, (output_format, quality) in enumerate(encodings(request)):
        with timed(timings, "encode"):
            files = [encode_unless_cancelled(cancelled, picture, output_format, quality) for picture in pictures]
            if sign:
                files = [sign(file, CONTENT_TYPES[output_format]) for file in files]
        content_type = CONTENT_TYPES[output_format]
        inline = Files([base64.b64encode(file).decode("ascii") for file in files], content_type)
        facts: DeliveryFacts = {"delivery": "inline", "output_format": output_format}
        if note:
            facts["delivery_note"] = note
        metadata = complete_metadata(facts)
        reply = shaped_reply(terms.shape, request, metadata, inline)
        by_url = not attempt and (terms.mode is Delivery.URL or posted_bytes(reply) > terms.limit_bytes)
        if bucket and by_url and metadata["backend"] == "pil-fallback":
            note = facts["delivery_note"] = STAND_IN_NOTE
            reply = shaped_reply(terms.shape, request, complete_metadata(facts), inline)
        elif bucket and by_url:
            keys = [bucket.key(terms.job_id, k, output_format, request.task) for k in range(len(files))]
            uploads = [File(key, data, content_type) for key, data in zip(keys, files, strict=True)]
            try:
                with timed(timings, "upload"):
                    urls = upload_files(bucket, uploads, terms.upload_seconds, cancelled)
                facts["delivery"] = "url"
                uploaded = Files(urls, content_type, by_url=True)
                return shaped_reply(terms.shape, request, complete_metadata(facts), uploaded)
            except UploadFailed as failure:
                note = f"the bucket did not take the pictures ({failure})"
                facts["delivery_note"] = note
                reply = shaped_reply(terms.shape, request, complete_metadata(facts), inline)
        size = posted_bytes(reply)
        if size <= terms.limit_bytes:
            return reply
        smallest = min(size, smallest or size)
    raise size_error(smallest, terms, note, request)


def encode_unless_cancelled(
    cancelled: threading.Event, picture: Image.Image, output_format: str, quality: int | None
) -> bytes:
    """The picture's file. Raises `Cancelled` where the job has been stopped."""
    if cancelled.is_set():
        raise Cancelled
    return encode_picture(picture, output_format, quality)


def size_error(size: int, terms: Terms, note: str, request: Drawing) -> JobError:
    """The failure of a reply of `size` bytes. `note`: why the pictures are not in the bucket, if they were to be."""
    figures = f"the reply has {size / 1e6:.2f} MB and at most {terms.limit_bytes / 1e6:g} MB are delivered"
    is_stand_in = note == STAND_IN_NOTE
    if note and not is_stand_in:
        return JobError("upload_failed", f"{note}, and {figures}")
    other = "output_format auto, or jpeg or webp with output_quality, " if request.output_format != "auto" else ""
    rest = f"; {STAND_IN_NOTE}" if is_stand_in else ", or give a bucket"
    return JobError("result_too_large", f"{figures}; ask for {other}{SMALLER}{rest}")
