"""A bucket that speaks S3: where it is, how files are named in it, and whether its configuration can be used.

A bucket comes from the operator's settings (`BUCKET_*`) or from a job's own `s3Config`. No error holds a key or an
address. Knows nothing of pictures, replies or connections (`upload.py`).
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from ..delivery_settings import Delivery
from ..errors import InvalidInput
from ..settings import Misconfigured, Settings

if TYPE_CHECKING:
    from pydantic import JsonValue
    from pydantic_core import ErrorDetails

# S3's own rule for names, by which no name can change the path or the host that it becomes a part of.
BUCKET_NAME = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
REGION = r"^[A-Za-z0-9-]{1,40}$"  # RunPod's are in capitals: EU-RO-1
USUAL_REGION = "us-east-1"  # that requests are signed for where the service does not say
BUCKET = r"(?:(?P<bucket>[a-z0-9.-]+)\.)?"
AREA = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"  # a region as most services call it
# By service, its hosts: they may begin with the bucket's name, and most tell the region that requests are signed for.
HOSTS = {
    "Amazon": (
        BUCKET + rf"s3(?:-external-1|-fips|-accesspoint(?:-fips)?)?(?:[.-](?:dualstack\.)?{AREA})?"
        r"\.amazonaws\.(?:com|com\.cn|eu)"
    ),
    "Amazon's acceleration": BUCKET + r"s3-accelerate(?:\.dualstack)?\.amazonaws\.com",
    "Amazon's PrivateLink": BUCKET + rf"bucket\.vpce-[a-z0-9-]+\.s3\.{AREA}\.vpce\.amazonaws\.com",
    "Backblaze": BUCKET + rf"s3\.{AREA}\.backblazeb2\.com",
    "Cloudflare R2": (
        r"(?:(?P<bucket>[a-z0-9.-]+)\.(?=[0-9a-f]{32}\.))?[a-z0-9-]+(?:\.[a-z]+)?"  # account and jurisdiction
        r"\.r2\.cloudflarestorage\.com"
    ),
    "DigitalOcean": BUCKET + r"(?P<region>[a-z]{3}\d)\.digitaloceanspaces\.com",
    "Hetzner": BUCKET + r"(?P<region>[a-z]{3}\d)\.your-objectstorage\.com",
    "IONOS": BUCKET + rf"s3[.-]{AREA}\.ionoscloud\.com",
    "Linode": BUCKET + rf"{AREA}\.linodeobjects\.com",
    "OVH": BUCKET + r"s3\.(?P<region>[a-z]+(?:-[a-z]+)*)(?:\.(?:io|perf))?\.cloud\.ovh\.(?:net|us)",
    "RunPod": r"(?P<bucket>)s3api-(?P<region>[a-z]+-[a-z]+-\d+)\.runpod\.io",
    "Scaleway": BUCKET + r"s3\.(?P<region>[a-z]{2}-[a-z]+)\.scw\.cloud",
    "Vultr": BUCKET + r"(?P<region>[a-z]+\d+)\.vultrobjects\.com",
    "Wasabi": BUCKET + rf"s3(?:\.{AREA})?\.wasabisys\.com",
}
# Where files of a bucket are read and none is put.
READING_HOSTS = re.compile(
    r"(?:.+\.)?(?:cdn\.digitaloceanspaces\.com|r2\.dev|cloudfront\.net|b-cdn\.net|f\d+\.backblazeb2\.com"
    r"|(?:s3-)?website[.-][a-z0-9.-]+\.(?:amazonaws\.com(?:\.cn)?|linodeobjects\.com|scw\.cloud|ovh\.(?:net|us)))"
)
# Folders before the bucket's name in the address of a service that stands behind another.
FOLDERS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._~-]*){0,9}")


@dataclass(frozen=True)
class Bucket:
    """Where files are put and how they are named there. `restricted`: only public addresses may be reached."""

    endpoint: str  # scheme://host[:port][/path]
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
        """The key of one of the job's pictures; of a job that is delivered twice it is the same both times."""
        return self.prefix + self.key_template.format(
            job_id=path_part(job_id), index=index, extension=extension, task=task
        )


def path_part(job_id: str) -> str:
    """The job's id as a part of a path: with other characters replaced, and then with a digest that keeps ids apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:100]
    if plain == job_id:
        return plain
    return f"{plain}-{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


class S3Config(BaseModel):
    """A job's own bucket, as the platform's documentation names its fields, with `region` and `prefix` beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    accessId: Annotated[SecretStr, Field(min_length=1, max_length=200, description="a text of 1 to 200 characters")]
    accessSecret: Annotated[SecretStr, Field(min_length=1, max_length=200, description="a text of 1 to 200 characters")]
    bucketName: Annotated[str, Field(pattern=BUCKET_NAME, description="3 to 63 characters: a-z, 0-9, dots and hyphens")]
    endpointUrl: Annotated[
        str, Field(max_length=500, description="an http or https URL; its path may end with the bucket's name")
    ]
    region: Annotated[str, Field(pattern=REGION, description="a region's name, such as eu-central-1 or EU-RO-1")] = ""
    prefix: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_./-]{0,199}$",
            description="at most 200 characters: letters, digits, dots, underscores, hyphens and slashes",
        ),
    ] = ""


def bucket_from_settings(settings: Settings) -> Bucket | None:
    """The operator's bucket, or None where none is set. Raises `Misconfigured` naming the variable that is wrong."""
    if settings.BUCKET_ENDPOINT_URL is None:
        if settings.QWEN_DELIVERY is Delivery.URL:
            raise Misconfigured("QWEN_DELIVERY is url and BUCKET_ENDPOINT_URL is not set")
        return None
    access_key, secret_key = settings.BUCKET_ACCESS_KEY_ID, settings.BUCKET_SECRET_ACCESS_KEY
    if access_key is None or secret_key is None:
        missing = "BUCKET_ACCESS_KEY_ID" if access_key is None else "BUCKET_SECRET_ACCESS_KEY"
        raise Misconfigured(f"BUCKET_ENDPOINT_URL is set and {missing} is not")
    try:
        endpoint, name, region = split_endpoint(settings.BUCKET_ENDPOINT_URL, settings.BUCKET_NAME or "")
    except ValueError as error:
        raise Misconfigured(f"BUCKET_ENDPOINT_URL {error}") from None
    if not re.fullmatch(BUCKET_NAME, name):
        raise Misconfigured("BUCKET_NAME must name the bucket, which the host of BUCKET_ENDPOINT_URL does not")
    return Bucket(
        endpoint=endpoint,
        name=name,
        region=settings.BUCKET_REGION or region,
        access_key=access_key.get_secret_value(),
        secret_key=secret_key.get_secret_value(),
        prefix=settings.BUCKET_PREFIX,
        key_template=settings.BUCKET_KEY,
        public_url=settings.BUCKET_PUBLIC_URL,
        url_seconds=settings.BUCKET_URL_SECONDS,
        restricted=False,
    )


def bucket_from_job(s3_config: "JsonValue", settings: Settings) -> Bucket:
    """The bucket of a job's `s3Config`. Raises `InvalidInput` naming the field and the rule, never the value."""
    if not isinstance(s3_config, dict):
        raise InvalidInput("s3Config must be an object")
    fields = {name: value for name, value in s3_config.items() if value not in (None, "")}
    try:
        config = S3Config.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(describe_error(error.errors(include_url=False, include_input=False)[0])) from None
    try:
        endpoint, name, region = split_endpoint(config.endpointUrl, config.bucketName)
    except ValueError as error:
        raise InvalidInput(f"s3Config.endpointUrl {error}") from None
    return Bucket(
        endpoint=endpoint,
        name=name,
        region=config.region or region,
        access_key=config.accessId.get_secret_value(),
        secret_key=config.accessSecret.get_secret_value(),
        prefix=config.prefix,
        key_template=settings.BUCKET_KEY,
        public_url=None,
        url_seconds=settings.BUCKET_URL_SECONDS,
        restricted=True,
    )


def describe_error(error: "ErrorDetails") -> str:
    """One of pydantic's errors in our words: the field and the rule, without the value."""
    name = str(error["loc"][0]) if error["loc"] else ""
    field = S3Config.model_fields.get(name)
    if field is None:
        return f"s3Config takes only {', '.join(S3Config.model_fields)}"
    if error["type"] == "missing":
        return f"s3Config.{name} is required"
    return f"s3Config.{name} must be {field.description or 'a text'}"


def split_endpoint(url: str, name: str) -> tuple[str, str, str]:
    """(scheme://host[:port][/path], bucket, region) of an S3 service's URL, with the bucket in its host or path or not.

    `name`: the bucket's name from beside the URL; where it is empty, the URL's is taken. Raises `ValueError` whose text
    goes on after the field's name.
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
    if READING_HOSTS.fullmatch(parts.hostname):
        raise ValueError("is the address of a CDN or website, which takes no files: give that of the S3 service")
    service = split_host(parts.hostname)
    host, in_host, region = service or (parts.hostname, "", USUAL_REGION)
    folders, in_path = split_path(parts.path.strip("/"), "" if service else name)
    if service and folders:
        raise ValueError("must have no path beyond the bucket's name")
    names = {bucket for bucket in (name, in_host, in_path) if bucket}
    if len(names) > 1:
        raise ValueError("names another bucket than the one given beside it")
    host = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{f'/{folders}' if folders else ''}"
    return address, next(iter(names), ""), region


def split_host(host: str) -> tuple[str, str, str] | None:
    """(host, bucket, region) of a service in `HOSTS`, the host without the bucket's name; None for any other host."""
    for service, pattern in HOSTS.items():
        if match := re.fullmatch(pattern, host):
            parts = match.groupdict()
            bucket = parts["bucket"] or ""
            host = host[len(bucket) + 1 :] if bucket else host
            return host, bucket, signed_region(service, parts.get("region"))
    return None


def signed_region(service: str, region: str | None) -> str:
    """The region that a service checks in signatures. `region`: as its host has it, if it does."""
    if service == "Cloudflare R2":
        return "auto"
    if service == "RunPod" and region:
        return region.upper()
    if service == "IONOS" and region == "eu-central-1":
        return "de"  # its oldest region has kept its first name
    return region or USUAL_REGION


def split_path(path: str, name: str) -> tuple[str, str]:
    """(folders, bucket) of a URL's path, which may end with the bucket's name. `name`: the bucket's, if it is known.

    A path without a known bucket's name is of folders alone, as in https://PROJECT.supabase.co/storage/v1/s3; where
    none is known the last part is the bucket. Raises `ValueError` where the path could not be one of a service.
    """
    if path and not FOLDERS.fullmatch(path):
        raise ValueError("must have a path of at most 10 names of letters, digits and ._~-, or none")
    folders, _, last = path.rpartition("/")
    return (path, "") if name and last != name else (folders, last)
