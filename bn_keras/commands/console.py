"""Output of commands, for terminals of any encoding and pipes whose reader has left."""

import atexit
import gc
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, TextIO, cast

from bn_keras.texts import encodable, plain

if TYPE_CHECKING:
    from rich.console import Console

HELP = ("-h", "--help")  # either asks a verb for its help
INTERRUPTED = 130  # the exit status after Ctrl-C


def end_at_once() -> None:
    """Lets the process end without one more search for garbage in all that there is.

    With TensorFlow loaded that would take more than a second, after the last line is printed.
    """
    atexit.register(gc.freeze)


class Output(io.TextIOBase):
    """A text stream that goes on in silence when its reader is gone, as after `| head -1`.

    So the command finishes its work. Characters that the stream's encoding lacks are spelt out. A
    full disk is still an OSError.

    Args:
        stream: such as sys.stdout.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

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
        self._do(lambda: self._stream.write(encodable(text, self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except OSError as error:
            # What is left in the stream's buffer goes nowhere: else the interpreter would fail on
            # it once more at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise


def make_console() -> "Console":
    """A rich Console on standard output.

    Where that is no terminal, it has the width that COLUMNS says, or one that the tables fit in.
    """
    from rich.console import Console  # help and mistakes do without

    columns = os.environ.get("COLUMNS", "")
    known = sys.stdout.isatty() or (columns.isdigit() and int(columns) > 0)
    return Console(
        file=cast(TextIO, Output(sys.stdout)), highlight=False,
        width=None if known else 100,
    )


def say(text: str) -> None:
    """Prints plain text, in lines of any length."""
    output = Output(sys.stdout)
    output.write(text + "\n")
    output.flush()


def refuse(program: str, error: Any, status: int = 2, lines: bool = False) -> int:
    """Prints what was wrong, on standard error; returns the exit status.

    Args:
        program: what the user called.
        error: an exception or a text.
        status: the exit status.
        lines: whether to keep its lines apart; else it is told in one.
    """
    text = str(error)
    told = "\n".join(map(plain, text.split("\n"))) if lines else plain(text)
    output = Output(sys.stderr)
    try:
        output.write(f"{program}: {told}\n")
        output.flush()
    except OSError:
        pass  # nobody is left to tell; the exit status says it too
    return status
