"""The settings of the operator's checks, a part of `settings.py`: who looks at pictures, and who rewrites prompts.

Knows nothing of what a setting causes.
"""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings


class CheckSettings(BaseSettings):
    QWEN_SAFETY_MODEL: str | None = Field(
        default=None,
        description=(
            "The image classifier that every picture must pass, in and out: a hub id, id@revision, or a folder. "
            "Without it: no picture is checked."
        ),
    )
    QWEN_SAFETY_LABELS: str | None = Field(
        default=None,
        description=(
            "The labels of the classifier that are rejected, separated by commas. Without it: those of explicit, "
            "hentai, nsfw, porn, pornography, sexy and unsafe that it has."
        ),
    )
    QWEN_SAFETY_THRESHOLD: float = Field(
        default=0.5, gt=0, le=1, description="The probability of the rejected labels from which a picture is rejected."
    )
    QWEN_REWRITE_URL: str | None = Field(
        default=None,
        description=(
            "The base address of an OpenAI-compatible API, such as https://api.openai.com/v1, by whose chat prompts "
            "are rewritten where a job asks for that. Without it: none are."
        ),
    )
    QWEN_REWRITE_MODEL: str | None = Field(
        default=None, description="The language model that rewrites prompts. For edits it must see pictures."
    )
    QWEN_REWRITE_KEY: SecretStr | None = Field(default=None, description="The key of the API that rewrites prompts.")
    QWEN_REWRITE_SECONDS: float = Field(
        default=10, gt=0, description="How long rewriting one prompt may take, in seconds."
    )

    @model_validator(mode="after")
    def require_classifier(self) -> Self:
        """Refuse labels without a classifier: their operator takes pictures for checked that nobody looks at."""
        if self.QWEN_SAFETY_LABELS is not None and self.QWEN_SAFETY_MODEL is None:
            raise ValueError("QWEN_SAFETY_LABELS is set and QWEN_SAFETY_MODEL is not: no picture would be checked")
        return self

    @field_validator("QWEN_REWRITE_URL")
    @classmethod
    def require_address(cls, value: str | None) -> str | None:
        """Refuse what the path of a chat endpoint cannot be appended to, and what would show a secret in the log."""
        if value is None:
            return None
        parts = urlsplit(value)  # raises ValueError too
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https URL")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no credentials, query or fragment; QWEN_REWRITE_KEY has the key")
        return value
