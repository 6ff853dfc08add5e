"""What stands between OpenAI's clients and an endpoint: a call becomes a job, and the job's output the answer.

As worker-vllm expects of the platform's proxy; what that really does is not known here. Waits for the job's end, takes
JSON only.
"""

import json

from .control_plane import answer


def proxy(plane):
    """For `web`: OpenAI's routes below /v1, each a job of the plane."""

    def serve(handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.headers.get("Content-Type", "").startswith("multipart/"):
            return answer(handler, {"error": {"message": "JSON only", "type": "invalid_request_error"}}, 415)
        job_id = f"openai-{next(plane.numbers)}"
        plane.put(job_id, {"openai_route": handler.path, "openai_input": json.loads(body or b"{}")})
        result = plane.result(job_id)
        if "error" in result:
            error = json.loads(result["error"])
            return answer(handler, {"error": error}, 400 if error["type"] == "invalid_request_error" else 500)
        output = result["output"]
        return answer(handler, output[-1] if isinstance(output, list) else output)

    return serve
