"""How a job's pictures leave: in the reply or by URL from a bucket, in the encoding asked for or in one that fits.

The platform drops a result that is too large without a word, so what the SDK will post is measured, byte for byte,
before it goes. Knows nothing of how the pictures came about, nor of how a bucket is spoken to (`upload.py`).
"""

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from ..errors import Cancelled, InvalidInput, JobError
from ..jobs.reply import posted_bytes, success
from ..jobs.request import Drawing
from ..network.bucket import Bucket, bucket_from_job
from ..network.upload import File, UploadFailed, put, require_public
from ..settings import Delivery, Settings
from ..stopwatch import timed
from .images import encode_file

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
# What output_format auto tries in turn, a quality never below the job's output_quality.
QUALITIES = (95, 85)
LEAST_QUALITY = 75


@dataclass(frozen=True)
class Terms:
    """What the job and the operator agree on."""

    mode: Delivery
    bucket: Bucket | None
    limit: int  # bytes of JSON that are delivered
    upload_seconds: float
    job_id: str


def terms_of(job: dict, request: Drawing, settings: Settings, limit: int, operators: Bucket | None) -> Terms:
    """How this job's pictures will leave; a job with a bucket of its own gets URLs from it unless it says otherwise.

    Raises `InvalidInput` for an `s3Config` that cannot be used and for URLs without a bucket.
    """
    config = job.get("s3Config") or None  # an empty one is none
    bucket = operators if config is None else bucket_from_job(config, settings)
    standard = settings.QWEN_DELIVERY if config is None else Delivery.URL
    mode = Delivery(request.delivery) if request.delivery else standard
    if mode is Delivery.URL and bucket is None:
        raise InvalidInput("delivery 'url' needs a bucket: the job has no s3Config and the endpoint no BUCKET_*")
    bucket = None if mode is Delivery.INLINE else bucket
    return Terms(mode, bucket, limit, settings.QWEN_UPLOAD_SECONDS, str(job.get("id")))


def require_usable(terms: Terms, cancelled: threading.Event) -> None:
    """Refuse, before anything is drawn, a job's own bucket that may not be reached. Resolves its name."""
    if terms.bucket and terms.bucket.restricted:
        require_public(terms.bucket, terms.upload_seconds, cancelled)


def encodings(request: Drawing) -> Iterator[tuple[str, int | None]]:
    """(format, quality) as asked for, or, for `auto`, from the largest to the smallest that the job allows."""
    if request.output_format != "auto":
        yield request.output_format, request.output_quality
        return
    least = request.output_quality or LEAST_QUALITY
    yield "png", None
    yield "webp", None  # lossless
    for quality in (*(one for one in QUALITIES if one > least), least):
        yield "webp", quality


def deliver(
    request: Drawing,
    pictures: list[Image.Image],
    terms: Terms,
    facts_with: Callable[[dict], dict],
    timings: dict[str, float],
    cancelled: threading.Event,
) -> dict:
    """The reply, of at most `terms.limit` bytes as the SDK will post it.

    `facts_with(more)` is the metadata with `more` and the timings so far. Raises `result_too_large` or `upload_failed`
    with both figures, or `Cancelled`.
    """
    note, smallest = {}, 0
    for attempt, (output_format, quality) in enumerate(encodings(request)):
        with timed(timings, "encode"):
            files = [encode_unless(cancelled, picture, output_format, quality) for picture in pictures]
        texts = [base64.b64encode(file).decode("ascii") for file in files]
        about = {"delivery": "inline", "output_format": output_format}
        reply = success(request, facts_with(about | note), texts)
        if terms.bucket and not attempt and (terms.mode is Delivery.URL or posted_bytes(reply) > terms.limit):
            try:
                with timed(timings, "upload"):
                    urls = put(
                        terms.bucket, named(files, output_format, request, terms), terms.upload_seconds, cancelled
                    )
                return success(request, facts_with(about | {"delivery": "url"}), urls, "image_url")
            except UploadFailed as failure:
                note = {"delivery_note": f"the bucket did not take the pictures ({failure})"}
                reply = success(request, facts_with(about | note), texts)
        size = posted_bytes(reply)
        if size <= terms.limit:
            return reply
        smallest = min(size, smallest or size)
    raise too_large(smallest, terms, note.get("delivery_note"), request)


def encode_unless(cancelled: threading.Event, picture: Image.Image, output_format: str, quality: int | None) -> bytes:
    if cancelled.is_set():
        raise Cancelled
    return encode_file(picture, output_format, quality)


def named(files: list[bytes], extension: str, request: Drawing, terms: Terms) -> list[File]:
    content_type = CONTENT_TYPES[extension]
    return [
        File(terms.bucket.key(terms.job_id, index, extension, request.task), data, content_type)
        for index, data in enumerate(files)
    ]


def too_large(size: int, terms: Terms, note: str | None, request: Drawing) -> JobError:
    figures = f"the reply has {size / 1e6:.2f} MB and at most {terms.limit / 1e6:g} MB are delivered"
    if note:
        return JobError("upload_failed", f"{note}, and {figures}")
    ways = "fewer images or a smaller size"
    if request.output_format != "auto":
        ways = f"output_format auto, or jpeg or webp with output_quality, {ways}"
    return JobError("result_too_large", f"{figures}; ask for {ways}, or give a bucket")
