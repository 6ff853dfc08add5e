"""One job's files into a bucket by boto3, and the URLs to read them: bounded in time, stopped at once, in few words.

A job's own bucket is reached only at public addresses, by a connection pinned to the address that was checked, as input
images are. Knows nothing of pictures or replies.
"""

import functools
import io
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import InvalidInput
from .bucket import Bucket
from .side_threads import Busy, Late, SideThreads

MAX_UPLOADS = 16
uploads = SideThreads(MAX_UPLOADS)
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 20, 3
MAX_ANSWER = 1_000_000  # bytes of a restricted bucket's answer that are read


class UploadFailed(Exception):
    """Why files did not get into the bucket, in words that a caller may read."""


@dataclass(frozen=True)
class File:
    key: str
    data: bytes
    content_type: str


def require_public(bucket: Bucket, seconds: float, cancelled: threading.Event | None = None) -> None:
    """Refuse a job's own bucket at an address that jobs may not reach, before anything is drawn for it.

    Raises `InvalidInput`, or `Cancelled`. Within `seconds` in all.
    """
    from runpod.serverless.utils.rp_ssrf import SSRFError, resolve_and_validate

    parts = urlsplit(bucket.endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        uploads.within(seconds, lambda: resolve_and_validate(parts.hostname, port), cancelled)
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise InvalidInput("s3Config.endpointUrl names a host that does not resolve") from None
        raise InvalidInput("s3Config.endpointUrl must lead to a public address") from None
    except (Late, Busy):
        raise InvalidInput("s3Config.endpointUrl names a host that was not resolved in time") from None


def put(bucket: Bucket, files: list[File], seconds: float, cancelled: threading.Event | None = None) -> list[str]:
    """The URLs of the files once all are in the bucket.

    Raises `UploadFailed`, also when they are not all there within `seconds`, or `Cancelled` within a moment once
    `cancelled` is set; an upload in flight may then still arrive, under the key that the same job would use again.
    """
    try:
        return uploads.within(seconds, lambda: send(bucket, files, time.monotonic() + seconds), cancelled)
    except Late:
        raise UploadFailed(f"not done within {seconds:g} seconds") from None
    except Busy:
        raise UploadFailed(f"{MAX_UPLOADS} uploads are still being waited for") from None


def send(bucket: Bucket, files: list[File], ends: float) -> list[str]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = client_of(bucket) if not bucket.restricted else make_client(bucket)
        urls = []
        for file in files:
            if time.monotonic() > ends:
                raise UploadFailed("not done in time")
            client.put_object(Bucket=bucket.name, Key=file.key, Body=file.data, ContentType=file.content_type)
            urls.append(url_of(client, bucket, file.key))
        return urls
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        # The code only, and only if it looks like one: a bucket's message may repeat what was signed.
        raise UploadFailed(code if re.fullmatch(r"\w{1,40}", code) else "refused") from None
    except (BotoCoreError, Boto3Error, OSError, ValueError) as error:
        raise UploadFailed(type(error).__name__) from None


def url_of(client: Any, bucket: Bucket, key: str) -> str:
    if bucket.public_url:
        return f"{bucket.public_url.rstrip('/')}/{quote(key)}"
    place = {"Bucket": bucket.name, "Key": key}
    return client.generate_presigned_url("get_object", Params=place, ExpiresIn=bucket.url_seconds)


@functools.lru_cache(maxsize=1)
def client_of(bucket: Bucket) -> Any:
    """The operator's client, kept: making one takes a tenth of a second."""
    return make_client(bucket)


def make_client(bucket: Bucket) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # Stores other than Amazon's refuse the checksum headers that boto3 adds of itself.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "virtual" if bucket.endpoint.endswith(".amazonaws.com") else "path"},
        proxies={} if bucket.restricted else None,
    )
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        config=config,
    )
    if bucket.restricted:
        client.meta.events.register("before-send.s3", send_pinned)
    return client


def send_pinned(request: Any, **_: Any) -> Any:
    """In place of botocore's own sending: the host is resolved and checked once, and that very address is dialled."""
    import requests
    from botocore.awsrequest import AWSResponse
    from botocore.exceptions import EndpointConnectionError
    from runpod.serverless.utils.rp_ssrf import PinnedIPAdapter, resolve_and_validate
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError

    parts = urlsplit(request.url)
    addresses = resolve_and_validate(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
    with requests.Session() as session:
        session.trust_env = False
        session.mount(f"{parts.scheme}://", PinnedIPAdapter(addresses[0]))
        outgoing = requests.Request(request.method, request.url, headers=headers, data=request.body).prepare()
        try:
            answer = session.send(outgoing, stream=True, allow_redirects=False, timeout=(CONNECT_SECONDS, READ_SECONDS))
            body = answer.raw.read(MAX_ANSWER, decode_content=True)
        except (requests.RequestException, HTTPError) as error:  # the latter where the body breaks off
            # Botocore's own name for it, which it retries; the address stays out of the words.
            raise EndpointConnectionError(endpoint_url="", error=type(error).__name__) from None
        raw = HTTPResponse(io.BytesIO(body), preload_content=False)
        return AWSResponse(request.url, answer.status_code, dict(answer.headers), raw)
