"""The settings of how pictures reach their callers, the part of `settings.py` that names S3's terms and marks in files.

Knows nothing of what a setting causes.
"""

import re
from enum import StrEnum

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class Delivery(StrEnum):
    """How a job's pictures reach its caller."""

    AUTO = "auto"  # in the reply; by URL from a bucket where the reply would be too large and there is a bucket
    INLINE = "inline"  # in the reply or not at all
    URL = "url"  # by URL from a bucket


class ResponseShape(StrEnum):
    """Whose names a reply has."""

    WORKER = "worker"  # the worker's own
    RUNPOD_PUBLIC = "runpod-public"
    FAL = "fal"
    REPLICATE = "replicate"


class Mark(StrEnum):
    """How a picture's file says, for machines, where it comes from."""

    XMP = "xmp"  # IPTC's DigitalSourceType
    C2PA = "c2pa"  # the same, and a manifest that the operator's certificate signs
    NONE = "none"


class DeliverySettings(BaseSettings):
    # The platform drops results above 10 MB without a word. The margin below that covers its envelope.
    QWEN_RESULT_LIMIT_MB: float = Field(
        default=9.5,
        gt=0,
        description="The largest reply that is sent, in MB (1e6 bytes of JSON). RunPod drops replies above 10 MB.",
    )
    QWEN_DELIVERY: Delivery = Field(
        default=Delivery.AUTO,
        description=(
            "How pictures leave where a job does not say. auto: in the reply, or by URL where they do not fit. inline: "
            "in the reply. url: by URL from the bucket."
        ),
    )
    QWEN_RESPONSE_SHAPE: ResponseShape = Field(
        default=ResponseShape.WORKER,
        description=(
            "The shape of replies to jobs that do not say. worker: the worker's own. runpod-public, fal and replicate: "
            "the one that these services' clients read; a job then gets model_unavailable and never a stand-in."
        ),
    )
    QWEN_MARK: Mark = Field(
        default=Mark.XMP,
        description=(
            "How the files of pictures say that they were generated, for machines to read. xmp: by IPTC's "
            "DigitalSourceType in XMP. c2pa: by that and by a signed C2PA manifest. none: they do not."
        ),
    )
    QWEN_C2PA_CERTIFICATE: SecretStr | None = Field(
        default=None,
        description=(
            "The certificate that C2PA manifests are signed with, followed by those of its chain: the text of a PEM "
            "file, or the file's path."
        ),
    )
    QWEN_C2PA_KEY: SecretStr | None = Field(
        default=None,
        description="The private key of QWEN_C2PA_CERTIFICATE: the text of a PEM file, or the file's path.",
    )
    QWEN_UPLOAD_SECONDS: float = Field(
        default=60, gt=0, description="How long uploading one job's pictures may take, in seconds."
    )
    BUCKET_ENDPOINT_URL: str | None = Field(
        default=None,
        description=(
            "The address of the bucket's S3 service, which may name the bucket in its host or at the end of its path."
        ),
    )
    BUCKET_ACCESS_KEY_ID: SecretStr | None = Field(default=None, description="The bucket's access key.")
    BUCKET_SECRET_ACCESS_KEY: SecretStr | None = Field(default=None, description="The bucket's secret key.")
    BUCKET_NAME: str | None = Field(
        default=None, description="The bucket's name. Without it: the one in BUCKET_ENDPOINT_URL."
    )
    BUCKET_REGION: str | None = Field(
        default=None,
        description=(
            "The region that requests are signed for. Without it: the one that the address of the service names, auto "
            "for R2, us-east-1 where it names none."
        ),
    )
    BUCKET_PREFIX: str = Field(default="", description="The beginning of every picture's key.")
    BUCKET_KEY: str = Field(
        default="{job_id}/{index}.{extension}",
        description="The rest of a picture's key. {job_id} and {index} must be in it; {extension} and {task} may be.",
    )
    BUCKET_PUBLIC_URL: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="The bucket's public address. Replies then name it and the key, in place of a presigned URL.",
    )
    BUCKET_URL_SECONDS: int = Field(
        default=604_800, ge=1, le=604_800, description="How long a presigned URL is good for, in seconds."
    )

    @field_validator("BUCKET_KEY")
    @classmethod
    def require_distinct_keys(cls, value: str) -> str:
        """Refuse a template by which two pictures could share a key, or by which a key would need escaping in a URL."""
        plain = re.sub(r"\{(job_id|index|extension|task)\}", "", value)
        if "{job_id}" not in value or "{index}" not in value or not re.fullmatch(r"[A-Za-z0-9_./-]*", plain):
            raise ValueError(
                "must hold {job_id} and {index}, perhaps {extension} and {task}, else letters, digits, ._-/"
            )
        return value
