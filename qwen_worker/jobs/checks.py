"""What a job asks of the endpoint's checks, as far as the endpoint does it: looking at pictures, rewriting the prompt.

Knows nothing of how a picture is looked at or a prompt rewritten.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from ..errors import InvalidInput
from ..settings import Settings
from .request import Drawing, Generate
from .tasks import Layers
from .values import Warn, short_json

UNCHECKED = "this worker has no safety checker, and the pictures are not checked"
CHECKED = "the endpoint checks every picture, and no job switches that off"


def with_checks(request: Drawing, settings: Settings, sent_as: Mapping[str, str], warn: Warn) -> Drawing:
    """The request as the endpoint's checks leave it. `warn` is told where they do otherwise than the job asks."""
    is_checked, asked = settings.QWEN_SAFETY_MODEL is not None, request.enable_safety_checker
    if asked is not None and asked is not is_checked:
        name = sent_as.get("enable_safety_checker", "enable_safety_checker")
        sent = asked if name == "enable_safety_checker" else not asked
        warn(f"{name} {short_json(sent)}: {CHECKED if is_checked else UNCHECKED}")
    if request.prompt_extend and not settings.QWEN_REWRITE_URL:
        name = sent_as.get("prompt_extend", "prompt_extend")
        warn(f"{name} true: this worker does not rewrite prompts: the prompt is drawn as it is")
    if request.preview and isinstance(request, Layers):
        warn("preview true: layers have no previews, which would show the picture that is there already")
        return request.model_copy(update={"preview": False})
    if request.preview and is_checked:
        warn("preview true: the endpoint checks every picture before it is sent, and sends no previews")
        return request.model_copy(update={"preview": False})
    return request


def require_prompt(text: str) -> str:
    """The rewritten prompt, if a job could have it as its own. Raises `InvalidInput`, in which no word of it stands."""
    try:
        return Generate(prompt=text).prompt
    except ValidationError:
        rule = Generate.model_fields["prompt"].description
        raise InvalidInput(f"the rewritten one must be {rule}, without special tokens of the tokenizer") from None
