"""The page's own HTML: where a job is, what came of it, what went wrong. Every text of others is escaped here."""

from html import escape

from .following import Moment
from .result import Result

IDLE = "<p class='play-quiet'>Nothing is being drawn.</p>"


def moment_html(moment: Moment) -> str:
    """A line of text, the steps as a bar, and what the visitor should know."""
    parts = [f"<p>{escape(moment.text)}</p>" if not moment.failure else ""]
    if moment.total and not moment.over:
        label = f"{moment.step} of {moment.total} steps"
        parts.append(f"<progress value='{moment.step}' max='{moment.total}' aria-label='{label}'></progress>")
    elif not moment.over:
        parts.append("<progress aria-label='waiting'></progress>")
    parts += [notice_html(text, "warning") for text in (moment.note, *moment.warnings) if text]
    if moment.failure:
        parts.append(failure_html(moment.failure))
    return "".join(parts)


def failure_html(sentence: str) -> str:
    return notice_html(sentence, "error")


def notice_html(sentence: str, kind: str) -> str:
    name = {"error": "Error", "warning": "Note"}[kind]
    return f"<p class='play-{kind}'><strong>{name}:</strong> {escape(sentence)}</p>"


def result_html(result: Result) -> str:
    """The facts of a picture; a stand-in is named before anything else."""
    parts: list[str] = []
    if result.stand_in:
        parts.append(
            "<div class='play-stand-in' role='alert'><strong>This is a stand-in. No model drew this picture.</strong>"
            f"<span>{escape(result.stand_in)}</span></div>"
        )
    parts.append(f"<p class='play-facts'>{escape(result.line)}</p>")
    parts += [notice_html(text, "warning") for text in result.warnings]
    return "".join(parts)
