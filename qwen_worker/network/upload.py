"""The upload of a job's files into a bucket by boto3, and the URLs to read them: bounded in time, stopped at once.

A job's own bucket is reached only at public addresses, by a connection pinned to the address that was checked, as input
images are. Knows nothing of pictures or replies.
"""
# pyright: reportMissingTypeStubs=false
# boto3, botocore and the SDK have no stubs: the protocols below say what is used of boto3 and botocore.

import functools
import io
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from ..errors import InvalidInput
from .bucket import Bucket
from .side_threads import Busy, Late, SideThreads

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse

MAX_UPLOADS = 16
upload_threads = SideThreads(MAX_UPLOADS)
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 20, 3
AMAZON_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")  # where buckets are named by hosts alone
MAX_RESPONSE_BYTES = 1_000_000  # the most that is read of a restricted bucket's response


class UploadFailed(Exception):
    """Files did not get into the bucket; the message says why in words that a caller may read."""


@dataclass(frozen=True)
class File:
    """A file to put into a bucket, and its content type there."""

    key: str
    data: bytes
    content_type: str


class S3Client(Protocol):
    """What is used of boto3's client."""

    @property
    def meta(self) -> Any: ...
    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> object: ...
    def generate_presigned_url(self, ClientMethod: str, *, Params: Mapping[str, str], ExpiresIn: int) -> str: ...


class S3Request(Protocol):
    """What is used of the request that botocore would send."""

    method: str
    url: str
    headers: Mapping[str, str | bytes]
    body: bytes


def require_public(bucket: Bucket, seconds: float, cancelled: threading.Event | None = None) -> None:
    """Refuse a job's own bucket at an address that jobs may not reach.

    Takes `seconds` at most. Raises `InvalidInput`, or `Cancelled`.
    """
    from runpod.serverless.utils.rp_ssrf import SSRFError, resolve_and_validate

    try:
        upload_threads.run_within(seconds, lambda: resolve_and_validate(*host_and_port(bucket.endpoint)), cancelled)
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise InvalidInput("s3Config.endpointUrl names a host that does not resolve") from None
        raise InvalidInput("s3Config.endpointUrl must lead to a public address") from None
    except (Late, Busy):
        raise InvalidInput("s3Config.endpointUrl names a host that was not resolved in time") from None


def host_and_port(url: str) -> tuple[str, int]:
    """The host of an http(s) URL, and its port or its scheme's."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def upload_files(
    bucket: Bucket, files: list[File], seconds: float, cancelled: threading.Event | None = None
) -> list[str]:
    """Put the files into the bucket and return their URLs.

    Raises `UploadFailed`, also when the files are not all there within `seconds`, or `Cancelled` within a moment once
    `cancelled` is set. An upload in flight may then still arrive, under the key that the same job would use again.
    """
    deadline = time.monotonic() + seconds
    try:
        return upload_threads.run_within(seconds, lambda: send_files(bucket, files, deadline), cancelled)
    except Late:
        raise UploadFailed(f"not done within {seconds:g} seconds") from None
    except Busy:
        raise UploadFailed(f"{MAX_UPLOADS} uploads are still being waited for") from None


def send_files(bucket: Bucket, files: list[File], deadline: float) -> list[str]:
    """As `upload_files`, on the present thread. `deadline`: of `time.monotonic()`; asked before each file."""
    import_module("boto3")  # whole: another thread may have its parts, and not have come to the package's end
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = make_client(bucket) if bucket.restricted else operator_client(bucket)
        urls: list[str] = []
        for file in files:
            if time.monotonic() > deadline:
                raise UploadFailed("not done in time")
            client.put_object(Bucket=bucket.name, Key=file.key, Body=file.data, ContentType=file.content_type)
            urls.append(file_url(client, bucket, file.key))
        return urls
    except ClientError as error:
        response: dict[str, Any] = error.response
        code = str(response.get("Error", {}).get("Code", ""))
        # The caller reads the code alone, and only if it looks like one: the bucket's message may repeat what was
        # signed.
        raise UploadFailed(code if re.fullmatch(r"\w{1,40}", code) else "refused") from None
    except (BotoCoreError, Boto3Error, OSError, ValueError) as error:
        raise UploadFailed(type(error).__name__) from None


def file_url(client: S3Client, bucket: Bucket, key: str) -> str:
    """Where the file is read: below the bucket's public address, or at a presigned URL."""
    if bucket.public_url:
        return f"{bucket.public_url.rstrip('/')}/{quote(key)}"
    place = {"Bucket": bucket.name, "Key": key}
    return client.generate_presigned_url("get_object", Params=place, ExpiresIn=bucket.url_seconds)


@functools.lru_cache(maxsize=1)
def operator_client(bucket: Bucket) -> S3Client:
    """The client of the operator's bucket. It is kept, since making one takes a tenth of a second."""
    return make_client(bucket)


def make_client(bucket: Bucket) -> S3Client:
    """A client for the bucket; of a restricted one each request goes through `send_pinned`."""
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # boto3 would add checksum headers to every request, which stores other than Amazon's refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "virtual" if bucket.endpoint.endswith(AMAZON_HOSTS) else "path"},
        proxies={} if bucket.restricted else None,
    )
    session: Any = Session()  # its methods are not annotated
    client: S3Client = session.client(
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


def send_pinned(request: S3Request, **_: Any) -> "AWSResponse":
    """Send a request in botocore's place: its host is resolved and checked once, and that very address is dialled.

    Raises `SSRFError` for an address that jobs may not reach, and botocore's `EndpointConnectionError`.
    """
    import requests
    from botocore.awsrequest import AWSResponse
    from botocore.exceptions import EndpointConnectionError
    from runpod.serverless.utils.rp_ssrf import PinnedIPAdapter, resolve_and_validate
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError

    addresses = resolve_and_validate(*host_and_port(request.url))
    headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
    with requests.Session() as session:
        session.trust_env = False
        session.mount(f"{urlsplit(request.url).scheme}://", PinnedIPAdapter(addresses[0]))
        outgoing = requests.Request(request.method, request.url, headers=headers, data=request.body).prepare()
        try:
            response = session.send(
                outgoing, stream=True, allow_redirects=False, timeout=(CONNECT_SECONDS, READ_SECONDS)
            )
            body = response.raw.read(MAX_RESPONSE_BYTES, decode_content=True)
        except (requests.RequestException, HTTPError) as error:  # urllib3's error is raised where the body breaks off
            # botocore retries this error of its own; its message does not hold the address.
            raise EndpointConnectionError(endpoint_url="", error=type(error).__name__) from None
        raw = HTTPResponse(io.BytesIO(body), preload_content=False)
        return AWSResponse(request.url, response.status_code, dict(response.headers), raw)
