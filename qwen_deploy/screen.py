"""What the operator sees: sentences, tables, a line that follows progress. Every text passes the redaction of the key.

Knows nothing of deployments.
"""

import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from .errors import UsageError

HIDDEN = "***"
REPEATS = 15  # lines of progress that differ from one printed before in their numbers alone, of which one is printed


class LastingOutput:
    """The standard output as a file that can be written to the end, also where nobody reads it any more.

    A terminal that was closed or a pipe whose reader has gone must not end a rollback at its first sentence.
    """

    def __init__(self, file: TextIO):
        self.file, self.is_lost = file, False
        self.encoding, self.isatty, self.fileno = file.encoding, file.isatty, file.fileno

    def write(self, text: str) -> int:
        encoding = self.encoding or "utf-8"
        # An encoding without a sign such as the check mark gets a question mark in its place.
        plain = text.encode(encoding, "replace").decode(encoding)
        return self.attempt(lambda: self.file.write(plain))

    def flush(self) -> None:
        self.attempt(self.file.flush)

    def attempt(self, work: Callable[[], int | None]) -> int:
        try:
            return work() or 0
        except OSError:
            self.is_lost = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())  # where what is buffered goes too, at the end of the process
            os.close(nowhere)
            return 0


class Screen:
    """Prints to `console`; on anything but a terminal the progress line becomes lines, fewer than its changes."""

    def __init__(self, console: Console | None = None, secrets: Iterable[str] = ()):
        self.output = LastingOutput(sys.stdout) if console is None and sys.stdout else None
        self.console = console or Console(highlight=False, file=cast(TextIO, self.output))
        self.secrets = [secret for secret in secrets if secret]
        self.last_progress: str = ""
        self.unprinted = 0  # lines of progress since the last one that was printed
        self.status_line: Status | None = None

    def redact(self, text: object) -> str:
        """The text without secrets, and with nothing in it that the console would take for markup."""
        plain = str(text)
        for secret in self.secrets:
            plain = plain.replace(secret, HIDDEN)
        return escape(plain)

    @property
    def is_lost(self) -> bool:
        """Whether nobody can read what is printed any more."""
        return self.output is not None and self.output.is_lost

    def say(self, text: object = "") -> None:
        self.console.print(self.redact(text), soft_wrap=True)

    def heading(self, text: str) -> None:
        self.console.print(f"\n[bold]{self.redact(text)}[/bold]", soft_wrap=True)

    def good(self, text: str) -> None:
        self.console.print(f"[green]✓[/green] {self.redact(text)}", soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]![/yellow] {self.redact(text)}", soft_wrap=True)

    def bad(self, text: str) -> None:
        self.console.print(f"[red]✗ {self.redact(text)}[/red]", soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ()) -> None:
        """Where the rows are too wide, the cells are wrapped but for those of the columns named in `whole`."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in columns:
            table.add_column(self.redact(name), overflow="fold", no_wrap=name in whole)
        for row in rows:
            # The cells are redacted before the table wraps them: a secret broken in two would not be recognised.
            table.add_row(*(self.redact("" if cell is None else cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def live_progress(self) -> Generator[None]:
        """Within it, `progress` replaces its line on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status("") as self.status_line:
            try:
                yield
            finally:
                self.status_line = None

    def progress(self, text: str) -> None:
        if self.status_line is not None:
            self.status_line.update(self.redact(text))
            return
        kind: str = re.sub(r"[\d.]+", "", text)
        self.unprinted += 1
        if kind != self.last_progress or self.unprinted >= REPEATS:
            self.say(f"  {text}")
            self.last_progress, self.unprinted = kind, 0

    def confirm(self, question: str) -> bool:
        """Whether the operator says yes. False without a terminal to ask on."""
        if not self.console.is_terminal:
            return False
        return self.ask(f"{self.redact(question)} \\[y/N] ").strip().lower() in ("y", "yes")

    def ask_secret(self, question: str) -> str:
        """What the operator types unseen; empty without a terminal to ask on."""
        return self.ask(self.redact(question), is_secret=True) if self.console.is_terminal else ""

    def ask(self, question: str, is_secret: bool = False) -> str:
        """The line that is typed; empty for Ctrl-D, and for bytes that are no text."""
        try:
            return self.console.input(question, password=is_secret)
        except (EOFError, UnicodeDecodeError):
            self.say()  # the question's line has not ended
            return ""


def require_yes(screen: Screen, given: bool, question: str = "Go on?") -> None:
    """`given` on the command line, or now. Raises `UsageError` for anything else."""
    if not given and not screen.confirm(question):
        raise UsageError("Nothing was done: it needs a yes, on a terminal or as --yes.")
