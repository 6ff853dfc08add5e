"""What goes wrong on the way to a picture, each as a sentence for the visitor. Knows nothing of who shows it."""


class PlayError(Exception):
    """The sentence says what is wrong and what to do. It holds no path of this machine and no key."""


class NoAnswer(PlayError):
    """The endpoint could not be reached, or is too busy to answer: the same request may work a moment later."""


class UnknownJob(PlayError):
    """The endpoint does not know the job, or does not know it any longer."""


class Unreadable(PlayError):
    """A file that is no picture, or an answer that is none of RunPod's.

    `name` is the file's own name where there is one.
    """

    def __init__(self, sentence: str, name: str = ""):
        super().__init__(sentence)
        self.name = name


def short(text: str, most: int = 300) -> str:
    """A text of others, cut so that a sentence with it stays readable."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
