"""Why a deployment cannot go on, in one sentence for the operator.

`deploy_qwen.main` turns each error into an exit code. Knows nothing of where errors arise.
"""


class DeployError(Exception):
    """Ends a command; its text is all that the operator sees, so no key or token belongs in it."""


class UsageError(DeployError):
    """The operator's mistake in an option or variable: the sentence names it, the rule and the value. Exit code 2."""


class ApiError(DeployError):
    """RunPod refused a request. `status` is the HTTP status code."""

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status


class NoAnswer(DeployError):
    """A request got no answer. `sent`: whether RunPod may have received the request, and acted on it."""

    def __init__(self, sentence: str, sent: bool):
        super().__init__(sentence)
        self.sent = sent


class NotServing(DeployError):
    """The new configuration does not serve: the reason to roll back."""
