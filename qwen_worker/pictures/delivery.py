"""How a job's pictures reach its caller: in the reply or by URL from a bucket, as the job asks or as it fits.

The platform drops a result that is too large without a word, so the body that the SDK will post is measured, byte for
byte, before it is sent. Knows nothing of how the pictures came about, nor of how a bucket is spoken to (`upload.py`).
"""

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..delivery_settings import Delivery, ResponseShape
from ..errors import Cancelled, InvalidInput, JobError
from ..jobs.reply import DeliveryFacts, Lineage, Metadata, posted_bytes
from ..jobs.request import Drawing
from ..jobs.response_shapes import Files, shape_of, shaped_reply
from ..jobs.values import Warn
from ..network.bucket import Bucket, bucket_from_job
from ..network.upload import File, UploadFailed, require_public, upload_files
from ..settings import Settings
from ..stopwatch import timed
from .encoding import encode_picture
from .encodings import BASE64, CONTENT_TYPES, LEAST_RATES, copies_in_reply, encodings_for, is_lossless, photo_rate
from .exact import encode_whole, encodings_of_photo
from .lineage import digest_of
from .photo import STITCH_KEY
from .signing import Sign
from .stitch import Stitch

if TYPE_CHECKING:
    from pydantic import JsonValue

SMALLER = "fewer images or a smaller size"
INEXACT_NOTE = "outside the mask the picture is not exact: lossless, the reply would have {size:.3g} MB"
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
    encodings: tuple[tuple[str, int | None], ...] = ()  # to be tried in turn, where they are not the request's own


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


def terms_of_photo(request: Drawing, stitch: Stitch, terms: Terms, warn: Warn, cancelled: threading.Event) -> Terms:
    """The terms of a photo that is to come back exact outside its mask, as `exact.encodings_of_photo` says."""
    room, copies = None if terms.bucket else terms.limit_bytes, copies_in_reply(request, terms.shape)
    return replace(terms, encodings=encodings_of_photo(request, stitch, room, copies, warn, cancelled))


def size_warning(request: Drawing, size: tuple[int, int], terms: Terms) -> str | None:
    """What to tell a caller before pictures are drawn that may be too large for a reply, None where they hardly are.

    `size`: of each, in pixels. Of `auto` the smallest encoding counts. Raises `JobError` result_too_large where even
    pictures of one colour would be too large, and `InvalidInput` where no file of the format is so large.
    """
    *_, (output_format, quality) = terms.encodings or encodings_for(request, size)
    if terms.bucket:
        return None
    width, height = size
    characters = copies_in_reply(request, terms.shape) * width * height * BASE64
    pictures = f"{request.picture_count} picture{'s' * (request.picture_count > 1)} of {width}x{height}"
    limit = f"of which at most {terms.limit_bytes / 1e6:g} MB are delivered"
    if (least := characters * LEAST_RATES[output_format]) > terms.limit_bytes:
        sentence = f"{pictures} would have at least {least / 1e6:.2g} MB in the reply, {limit}"
        raise JobError("result_too_large", f"{sentence}; ask for {SMALLER}, or give a bucket")
    expected = characters * photo_rate(output_format, quality) * (4 / 3 if request.background == "transparent" else 1)
    if expected <= terms.limit_bytes:
        return None
    is_auto = request.output_format == "auto"
    way = f"ask for {SMALLER}, or give a bucket" if is_auto else "auto takes a smaller encoding where that is so"
    at_least = " in its smallest encoding" if is_auto else ""
    sentence = f"output_format {request.output_format}: {pictures} may have {expected / 1e6:.2g} MB in the reply"
    return f"{sentence}{at_least}, {limit}; {way}"


def deliver(
    request: Drawing,
    pictures: list[Image.Image],
    terms: Terms,
    complete_metadata: Callable[[DeliveryFacts], Metadata],
    timings: dict[str, float],
    cancelled: threading.Event,
    sign: Sign | None = None,
    lineage: Lineage | None = None,
) -> dict[str, Any]:
    """The reply, of at most `terms.limit_bytes` as the SDK will post it. Stand-ins stay in it: no bucket gets one.

    `complete_metadata(delivery)` adds the delivery's facts and the timings so far to the metadata. `sign`: what signs
    each file, where the operator has files signed. `lineage`: an edit's, which gets the digests of its files.
    Raises `JobError` result_too_large or upload_failed with both figures, or `Cancelled`.
    """
    bucket, note, smallest = terms.bucket, "", 0
    is_exact = is_lossless(*terms.encodings[0]) if terms.encodings else False
    for attempt, (output_format, quality) in enumerate(terms.encodings or encodings_for(request, pictures[0].size)):
        files = [encode_unless_cancelled(cancelled, picture, output_format, quality, timings) for picture in pictures]
        if sign:
            with timed(timings, "encode"):
                files = [sign(file, CONTENT_TYPES[output_format]) for file in files]
        if is_exact and not is_lossless(output_format, quality):
            note = INEXACT_NOTE.format(size=smallest / 1e6)
        content_type = CONTENT_TYPES[output_format]
        inline = Files([base64.b64encode(file).decode("ascii") for file in files], content_type)
        facts: DeliveryFacts = {"delivery": "inline", "output_format": output_format}
        if note:
            facts["delivery_note"] = note
        if lineage:
            facts["lineage"] = {**lineage, "outputs": [digest_of(file) for file in files]}
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
    cancelled: threading.Event, picture: Image.Image, output_format: str, quality: int | None, timings: dict[str, float]
) -> bytes:
    """The file of the picture, or of the photo of which it is a part. Raises `Cancelled` where the job was stopped."""
    if cancelled.is_set():
        raise Cancelled
    if stitch := picture.info.get(STITCH_KEY):
        return encode_whole(picture, stitch, output_format, quality, timings)
    with timed(timings, "encode"):
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
