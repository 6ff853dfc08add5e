"""The settings of the bucket that pictures are sent to, the part of `settings.py` that names S3's terms.

Knows nothing of what a setting causes.
"""

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class BucketSettings(BaseSettings):
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
            "The region that requests are signed for. Without it: the one in the address of Amazon, Backblaze, "
            "DigitalOcean, RunPod or Wasabi, auto for R2, us-east-1 elsewhere."
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
