"""The text that the model gets: rewritten by the operator's language model, and short enough for the pipeline.

Knows nothing of how the language model is asked (`network/rewrite.py`) and of how a picture is drawn.
"""

from typing import Any

from ..errors import InvalidInput
from ..jobs.checks import require_prompt
from ..jobs.job import Job, Stage
from ..jobs.request import MAX_PROMPT_TOKENS
from ..jobs.served import require_tokens
from ..log import log_line
from ..network.rewrite import RewriteFailed, Rewriter
from ..pictures.inputs import Inputs, small_data_urls
from ..stopwatch import timed


def rewrite_prompt(rewriter: Rewriter, job: Job, inputs: Inputs) -> None:
    """Have the model get the prompt in the words of the operator's language model, or else the caller's own."""
    job.enter(Stage.REWRITING)
    with timed(job.timings, "rewrite"):
        try:
            pictures, seconds_left = small_data_urls(inputs.sources), job.seconds_to_limit()
            job.instruction = require_prompt(rewriter.rewrite(job.instruction, pictures, job.cancelled, seconds_left))
        except (RewriteFailed, InvalidInput) as failure:
            reason = failure.sentence if isinstance(failure, InvalidInput) else f"rewriting it failed: {failure}"
            job.draw_own_words(reason)
            log_line(job.id, "WARN", f"the prompt was not rewritten: {reason}")


def require_short_prompts(pipe: Any, job: Job) -> None:
    """Refuse a prompt of more tokens than the pipeline keeps: it would drop the rest in silence.

    A rewritten prompt that is too long gives way to the caller's own. Raises `InvalidInput`.
    """
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.processor.tokenizer
    tokens = len(tokenizer(job.instruction).input_ids)
    if tokens > MAX_PROMPT_TOKENS and job.instruction != job.request.instruction:
        job.draw_own_words(f"the rewritten one has {tokens} tokens and the model takes at most {MAX_PROMPT_TOKENS}")
    for name, text in (("prompt", job.instruction), ("negative_prompt", job.request.negative_prompt or "")):
        require_tokens(name, len(tokenizer(text).input_ids))
