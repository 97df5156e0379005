"""Names that users and files made up, in a terminal, in Markdown and in a picture.

A dataset's path, an arm or a column of a CSV file may hold anything: escape codes that would steer
the terminal, brackets that rich takes for markup, dollars that matplotlib takes for mathematics.
"""

import unicodedata

from bn_keras import metrics
from bn_keras.registry import UnknownName

# A terminal that cannot show the characters on the left gets those on the right.
SUBSTITUTES = str.maketrans({
    "–": "-", "−": "-", "—": "-", "…": "...", "•": "*", "²": "^2", "×": "x", "±": "+-", "·": "*",
    "≤": "<=", "≥": ">=", "→": "->", "’": "'", "“": '"', "”": '"', "─": "-",
})
MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_[]<>#|~$"})


def plain(text: object, to: str = "terminal") -> str:
    r"""A name as one harmless line.

    Args:
        text: the name.
        to: where it is shown. "terminal": control characters are spelt out, such as `\x1b`. Rich's
            markup is no concern there, since the report's tables take no markup. "markdown" and
            "picture" also take from their signs (`*`, `$`) the meaning that they have there.

    Raises:
        ValueError: an unknown place.
    """
    shown = "".join(
        character if unicodedata.category(character)[0] != "C"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in " ".join(str(text).splitlines())
    )
    if to == "terminal":
        return shown
    if to == "markdown":
        return shown.translate(MARKDOWN)
    if to == "picture":
        return shown.replace("$", r"\$")
    raise ValueError(f"to={to!r}: expected terminal, markdown or picture")


def encodable(text: str, encoding: str) -> str:
    r"""The text in characters that an encoding has, as of a terminal under `LANG=C`.

    Dashes and the like become their ASCII brothers, the rest is spelt out, such as `\u5b66`.
    """
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(SUBSTITUTES).encode(encoding, "backslashreplace").decode(encoding)


def describe(name: str) -> metrics.Metric:
    """A metric or curve in words; of one that nobody has declared, its name's words."""
    try:
        return metrics.describe(name)
    except UnknownName:
        return metrics.Metric(name, name.replace("_", " ").replace("/", " "), "", None)
