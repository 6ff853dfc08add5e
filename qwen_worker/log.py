"""The log: one line for each event on stdout, in the form that the platform reads. Knows nothing of the events."""

import json
import os
import traceback

from .errors import hide_secrets

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")


def log_line(job_id: str | None, level: str, message: str) -> None:
    """Print the message unless the SDK's log level hides it: on an endpoint as the platform's JSON, else as plain text.

    A URL in the message is printed without its secrets.
    `level`: one of `LEVELS`. `job_id`: None for what concerns no single job.
    """
    threshold = os.environ.get("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "INFO")).upper()
    if threshold in LEVELS and LEVELS.index(level) < LEVELS.index(threshold):
        return
    message = hide_secrets(message)
    if os.environ.get("RUNPOD_ENDPOINT_ID"):
        line = json.dumps({"requestId": job_id, "message": message, "level": level})
    else:
        line = f"{level:<7}| {job_id + ' | ' if job_id else ''}{message}"
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)


def log_exception(job_id: str | None) -> None:
    """Print the traceback of the exception that is being handled: the log is the one place that shows it whole."""
    log_line(job_id, "ERROR", traceback.format_exc())
