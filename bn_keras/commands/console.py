"""The terminal as commands use it: of any encoding, and gone when a pipe's reader has left."""

import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console


class Output(io.TextIOBase):
    """A text stream that goes on in silence when its reader is gone, as after `| head -1`.

    What a command has to do is worth more than what it has to say. Characters that the stream's
    encoding lacks become question marks.

    Args:
        stream: such as sys.stdout.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream; rich picks its characters by it."""
        return self._stream.encoding or "ascii"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        known = text.encode(self.encoding, "replace").decode(self.encoding)
        self._unless_gone(lambda: self._stream.write(known))
        return len(text)

    def flush(self) -> None:
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, do: Any) -> None:
        if self._gone:
            return
        try:
            do()
        except BrokenPipeError:
            self._gone = True
            # Else the interpreter would fail at its end, flushing what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def make_console(width: int = 100) -> Console:
    """A rich Console on standard output.

    Args:
        width: of lines where there is no terminal: wide enough for the tables.
    """
    output = Output(sys.stdout)
    return Console(
        file=output, highlight=False, width=None if sys.stdout.isatty() else width,
    )


def say(text: str) -> None:
    """Prints plain text."""
    output = Output(sys.stdout)
    output.write(text + "\n")
    output.flush()


def printable(text: str, lines: bool = False) -> str:
    """A text without control characters, which could overwrite what a terminal shows.

    Args:
        text: any.
        lines: whether it may have several lines.
    """
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text
    )


def refuse(program: str, error: Any, status: int = 2, lines: bool = False) -> int:
    """Prints what was wrong, on standard error; returns the exit status."""
    output = Output(sys.stderr)
    output.write(f"{program}: {printable(str(error), lines)}\n")
    output.flush()
    return status
