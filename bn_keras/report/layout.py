"""Tables and paragraphs that stay readable in any terminal: narrow, without colours, in ASCII."""

import dataclasses
import re
import textwrap
from typing import TYPE_CHECKING, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from bn_keras import verdicts
from bn_keras.texts import encodable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

COLORS = {
    verdicts.HOLDS: "green",
    verdicts.OTHER_REASON: "yellow",
    verdicts.FAILS: "red",
    verdicts.UNDECIDED: "dim",
}
GAP = 2  # between columns
UNBREAKABLE = "\u00a0"
NARROW = 16  # no column is narrower if its texts are not
WIDEST = 36  # a column that could be wider wraps at its words, for the sake of the others


@dataclasses.dataclass(frozen=True)
class Columns:
    """A table for rich's console; its texts are no markup.

    Words are broken only where one alone is wider than the terminal. Columns that do not fit beside
    each other go on in further tables below, each of which begins with the first column again.

    Attributes:
        headings: one a column.
        rows: texts, which may have several lines; as many as headings.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        encoding = options.encoding
        headings = [encodable(text, encoding) for text in self.headings]
        rows = [[_kept_together(encodable(text, encoding)) for text in cells]
                for cells in self.rows]
        columns = [[heading, *(cells[number] for cells in rows)]
                   for number, heading in enumerate(headings)]
        longest = [max(len(word) for text in column for line in text.splitlines()
                       for word in line.split(" "))
                   for column in columns]
        natural = [max(len(line) for text in column for line in text.splitlines() or [""])
                   for column in columns]
        wanted = [max(word, min(line, WIDEST)) for word, line in zip(longest, natural)]
        for place, group in enumerate(_groups(natural, longest, options.max_width)):
            if place:
                yield Text()
            widths = _widths([wanted[number] for number in group],
                             [longest[number] for number in group],
                             [natural[number] for number in group], options.max_width)
            yield _table(headings, rows, group, widths)


def _groups(natural: list[int], longest: list[int], width: int) -> list[list[int]]:
    """Numbers of the columns that stand side by side, the first one in every group.

    All in one group if their longest words fit, else as many as fit with two or three short words a
    line.
    """
    if sum(longest) + GAP * (len(longest) - 1) <= width:
        return [list(range(len(longest)))]
    least = [max(word, min(line, NARROW)) for word, line in zip(longest, natural)]
    groups = [[0]]
    for number in range(1, len(least)):
        taken = sum(least[other] + GAP for other in groups[-1])
        if len(groups[-1]) > 1 and taken + least[number] > width:
            groups.append([0])
        groups[-1].append(number)
    return groups


def _widths(wanted: list[int], longest: list[int], natural: list[int], width: int) -> list[int]:
    """Widths that fit, none below its longest word if that is possible at all."""
    room = width - GAP * (len(wanted) - 1)
    widths = list(wanted)
    while sum(widths) > room:
        spare = [mine - word for mine, word in zip(widths, longest)]
        if max(spare) > 0:
            widths[spare.index(max(spare))] -= 1
        elif max(widths) > 1:
            widths[widths.index(max(widths))] -= 1
        else:
            break
    while sum(widths) < room and any(mine < line for mine, line in zip(widths, natural)):
        lacking = [line - mine for mine, line in zip(widths, natural)]
        widths[lacking.index(max(lacking))] += 1
    return widths


def _table(
    headings: list[str], rows: list[list[str]], group: list[int], widths: list[int]
) -> Table:
    # Rows of several lines need a blank line between them.
    folded = any(
        len(_lines(cells[number], width)) > 1
        for cells in rows for number, width in zip(group, widths)
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
                  leading=int(folded))
    for number, width in zip(group, widths):
        figures = number and all(map(is_figure, (cells[number] for cells in rows)))
        table.add_column(
            Text("\n".join(_lines(headings[number], width))), width=width,
            justify="right" if figures else "left", overflow="fold",
        )
    for cells in rows:
        table.add_row(*(_text(_lines(cells[number], width), cells[number])
                        for number, width in zip(group, widths)))
    return table


def is_figure(cell: str) -> bool:
    """Whether a cell has a number, or says that there is none, in lines that are all short."""
    none = cell in ("", "–", "-", "never", "no value", "constant")
    return none or any(map(str.isdigit, cell)) and all(len(line) < 32 for line in cell.splitlines())


def _kept_together(text: str) -> str:
    """The text with the spaces in `[.96, .97]`, `5 of 6` and `5 to 6` made unbreakable."""
    text = re.sub(
        r"[\[(][^\[\]()]{,18}[\])]", lambda found: found[0].replace(" ", UNBREAKABLE), text
    )
    return re.sub(r"(\d) (of|to) (?=[\d.])", rf"\1{UNBREAKABLE}\2{UNBREAKABLE}", text)


def _lines(text: str, width: int) -> list[str]:
    return [line.replace(UNBREAKABLE, " ") for part in text.splitlines()
            for line in textwrap.wrap(part, max(1, width), break_on_hyphens=False) or [""]]


def _text(lines: list[str], cell: str) -> Text:
    text = Text("\n".join(lines), style=COLORS.get(cell.replace(UNBREAKABLE, " "), ""))
    start = text.plain.find("elsewhere:")
    if start >= 0:
        text.stylize("dim", start)
    return text


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Lines of text for rich's console, wrapped at words; what is indented stays so."""

    text: str
    style: str = ""

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        for line in encodable(self.text, options.encoding).split("\n"):
            indent = " " * (len(line) - len(line.lstrip()))
            wrapped = textwrap.wrap(
                line, options.max_width, subsequent_indent=indent, break_on_hyphens=False,
                break_long_words=False,  # a path is to be copied whole
            )
            yield Text("\n".join(wrapped), style=self.style, overflow="fold")
