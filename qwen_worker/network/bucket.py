"""A bucket that speaks S3: which one, under which keys, and what is asked of it before a job may use it.

Comes from the operator's environment (`BUCKET_*`) or from a job's own `s3Config`. No word of an error holds a key or an
address. Knows nothing of pictures, replies or connections (`upload.py`).
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from ..errors import InvalidInput
from ..settings import Delivery, Misconfigured, Settings

BUCKET_NAME = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"  # S3's own rule; keeps a name from becoming part of a path or host
REGION = r"^[a-z0-9-]{1,40}$"
AMAZON = re.compile(r"^(?:(?P<bucket>[a-z0-9.-]+)\.)?s3(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d))?\.amazonaws\.com$")
R2 = re.compile(r"\.r2\.cloudflarestorage\.com$")


@dataclass(frozen=True)
class Bucket:
    """Where to put files and how they are named there. `restricted`: only public addresses may be reached."""

    endpoint: str  # scheme://host[:port]
    name: str
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    prefix: str
    key_template: str
    public_url: str | None
    url_seconds: int
    restricted: bool

    def key(self, job_id: str, index: int, extension: str, task: str) -> str:
        """The same for the same picture of the same job: a job that is delivered twice overwrites itself."""
        return self.prefix + self.key_template.format(
            job_id=path_part(job_id), index=index, extension=extension, task=task
        )


def path_part(job_id: str) -> str:
    """The job's id where it is plain; else what is plain of it and a digest that keeps two ids apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:100]
    if plain == job_id:
        return plain
    return f"{plain}-{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


class S3Config(BaseModel):
    """A job's own bucket, as the platform's documentation names its fields, with `region` and `prefix` beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    accessId: Annotated[SecretStr, Field(min_length=1, max_length=200, description="a text of 1 to 200 characters")]
    accessSecret: Annotated[SecretStr, Field(min_length=1, max_length=200, description="a text of 1 to 200 characters")]
    bucketName: Annotated[str, Field(pattern=BUCKET_NAME, description="3 to 63 of a-z, 0-9, dot and hyphen")]
    endpointUrl: Annotated[str, Field(max_length=500, description="an http or https URL without a path")]
    region: Annotated[str, Field(pattern=REGION, description="a region's name, such as eu-central-1")] = ""
    prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_./-]{0,199}$", description="at most 200 of letters, digits and ._-/"),
    ] = ""


def bucket_from_settings(settings: Settings) -> Bucket | None:
    """The operator's bucket, or None where none is set. Raises `Misconfigured` naming the variable that is wrong."""
    if settings.BUCKET_ENDPOINT_URL is None:
        if settings.QWEN_DELIVERY is Delivery.URL:
            raise Misconfigured("QWEN_DELIVERY is url and BUCKET_ENDPOINT_URL is not set")
        return None
    for name in ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"):
        if getattr(settings, name) is None:
            raise Misconfigured(f"BUCKET_ENDPOINT_URL is set and {name} is not")
    try:
        endpoint, name, region = split(settings.BUCKET_ENDPOINT_URL, settings.BUCKET_NAME or "")
    except ValueError as error:
        raise Misconfigured(f"BUCKET_ENDPOINT_URL {error}") from None
    if not re.fullmatch(BUCKET_NAME, name):
        raise Misconfigured("BUCKET_NAME must name the bucket, which the host of BUCKET_ENDPOINT_URL does not")
    return Bucket(
        endpoint=endpoint,
        name=name,
        region=settings.BUCKET_REGION or region,
        access_key=settings.BUCKET_ACCESS_KEY_ID.get_secret_value(),
        secret_key=settings.BUCKET_SECRET_ACCESS_KEY.get_secret_value(),
        prefix=settings.BUCKET_PREFIX,
        key_template=settings.BUCKET_KEY,
        public_url=settings.BUCKET_PUBLIC_URL,
        url_seconds=settings.BUCKET_URL_SECONDS,
        restricted=False,
    )


def bucket_from_job(config: Any, settings: Settings) -> Bucket:
    """The bucket of a job's `s3Config`. Raises `InvalidInput` naming the field and the rule, never the value."""
    if not isinstance(config, dict):
        raise InvalidInput("s3Config must be an object")
    given = {name: value for name, value in config.items() if value not in (None, "")}
    try:
        one = S3Config.model_validate(given)
    except ValidationError as error:
        raise InvalidInput(sentence(error.errors(include_url=False, include_input=False)[0])) from None
    try:
        endpoint, name, region = split(one.endpointUrl, one.bucketName)
    except ValueError as error:
        raise InvalidInput(f"s3Config.endpointUrl {error}") from None
    return Bucket(
        endpoint=endpoint,
        name=name,
        region=one.region or region,
        access_key=one.accessId.get_secret_value(),
        secret_key=one.accessSecret.get_secret_value(),
        prefix=one.prefix,
        key_template=settings.BUCKET_KEY,
        public_url=None,
        url_seconds=settings.BUCKET_URL_SECONDS,
        restricted=True,
    )


def sentence(error: dict) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    known = S3Config.model_fields.get(name)
    if known is None:
        return f"s3Config takes only {', '.join(S3Config.model_fields)}"
    return f"s3Config.{name} is required" if error["type"] == "missing" else f"s3Config.{name} must be {rule(known)}"


def rule(known) -> str:
    return known.description or "a text"


def split(url: str, name: str) -> tuple[str, str, str]:
    """(endpoint, bucket, region) of an endpoint's URL, which may name the bucket in its host or as its path.

    Without a name of its own the host's or the path's is taken. Raises ValueError in words that follow the field's.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a valid URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http or https URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no credentials, query or fragment")
    host, path = parts.hostname, parts.path.strip("/")
    amazon = AMAZON.match(host)
    if amazon and amazon["bucket"]:
        in_host, host = amazon["bucket"], host[len(amazon["bucket"]) + 1 :]
    else:
        in_host = ""
    if "/" in path:
        raise ValueError("must have no path beyond the bucket's name")
    named = {one for one in (name, in_host, path) if one}
    if len(named) > 1:
        raise ValueError("names another bucket than the one given beside it")
    region = (amazon and amazon["region"]) or ("auto" if R2.search(host) else "us-east-1")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}", next(iter(named), ""), region
