"""The log's form: one line a fact on stdout, as the SDK and the platform read it. Knows nothing of what is told."""

import json
import os

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")


def log_line(job_id: str | None, level: str, message: str) -> None:
    """One line on stdout at the SDK's log level: the platform's JSON where there is an endpoint, else plain text."""
    threshold = os.environ.get("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "INFO")).upper()
    if threshold in LEVELS and LEVELS.index(level) < LEVELS.index(threshold):
        return
    if os.environ.get("RUNPOD_ENDPOINT_ID"):
        line = json.dumps({"requestId": job_id, "message": message, "level": level})
    else:
        line = f"{level:<7}| {job_id + ' | ' if job_id else ''}{message}"
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
