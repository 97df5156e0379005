"""Text from users and files, made safe to show in a terminal and in a picture; values for JSON.

A dataset's path, an arm or a column of a CSV file may hold anything: escape codes that would steer
the terminal, dollars that matplotlib takes for mathematics, characters that an encoding lacks.
"""

import dataclasses
import functools
import math
import re
from typing import Any, Sequence

# A terminal that cannot show the characters on the left gets those on the right.
SUBSTITUTES = str.maketrans({
    "–": "-", "−": "-", "—": "-", "…": "...", "•": "*", "²": "^2", "×": "x", "±": "+-", "·": "*",
    "≤": "<=", "≥": ">=", "→": "->", "’": "'", "“": '"', "”": '"', "─": "-",
})


def plain(text: object) -> str:
    r"""The text as one line, with all that a terminal would obey or hide spelt out, such as \x1b.

    Rich's markup stays as it is: print the line with `markup=False`.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(str(text).splitlines())
    )


def in_a_line(error: BaseException) -> str:
    """An exception in a line: its type, and the first line that tells why."""
    lines = [line.strip() for line in _ORNAMENTS.sub("", str(error)).splitlines() if line.strip()]
    if lines and lines[0].startswith("Exception encountered when calling"):  # Keras's; then why
        lines = lines[1:] or lines
    if lines and lines[0].startswith("Graph execution error"):  # TensorFlow's: why comes last
        lines = [line for line in lines if not line.startswith("[[")][-1:]
    why = [line.strip(" .")[:300] for line in lines[:1]]
    return plain(": ".join([type(error).__name__, *why]))


# Keras prints the core of its messages in bold, and a whole config behind them; TensorFlow names
# the operation, before and after.
_ORNAMENTS = re.compile(r"\x1b\[[0-9;]*m|\{\{.*?\}\}|\[Op:.*|Full object config: .*")


def in_picture(text: object) -> str:
    """The text as one line that matplotlib does not take for mathematics."""
    return plain(text).replace("$", r"\$")


def encodable(text: str, encoding: str) -> str:
    r"""The text in characters that an encoding has, as of a terminal under `LANG=C`.

    Dashes and the like become their ASCII brothers, the rest is spelt out, such as `\u5b66`.
    """
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(SUBSTITUTES).encode(encoding, "backslashreplace").decode(encoding)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of text, the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


@functools.singledispatch
def jsonable(value: Any) -> Any:
    """The value as strict JSON can hold it: a number that is not finite becomes a text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if hasattr(value, "tolist"):  # a number or an array of NumPy's
        return jsonable(value.tolist())
    return value


@jsonable.register(dict)
def _(value: dict[Any, Any]) -> Any:
    return {str(key): jsonable(one) for key, one in value.items()}


@jsonable.register(list)
@jsonable.register(tuple)
def _(value: Any) -> Any:
    return [jsonable(one) for one in value]


@jsonable.register(float)
def _(value: float) -> Any:
    return value if math.isfinite(value) else str(value)
