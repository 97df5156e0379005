"""Figures, one a file: a registered function draws rows on axes.

    @FIGURES.register("outcomes")
    def outcomes(rows, ax, argument=None): ...; return ax

Its docstring says how to read it. A study names its panels, `NAME` or `NAME:ARGUMENT`, and
`picture` puts them side by side. Every panel shows all seeds, and says how many there are and what
is bold.
"""

import io
import math
import warnings
from typing import Any, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import HANDLE_LENGTH, legend_below, wrapped
from bn_keras.study import Row
from bn_keras.texts import in_picture

PANEL_INCHES = (5.0, 4.3)
MOST_COLUMNS = 3
DPI = 100
# Kinds of files to the entries that would hold the time.
KINDS: dict[str, dict[str, None]] = {
    "png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
}


def draw(name: str, rows: Sequence[Row], ax: Axes) -> Axes:
    """Draws one panel.

    Args:
        name: `NAME` or `NAME:ARGUMENT` of a registered figure.
        rows: what it draws.
        ax: where.

    Raises:
        UnknownName: there is no such figure.
    """
    figure, _, argument = name.partition(":")
    drawn: Axes = FIGURES.get(figure)(rows, ax, argument or None)
    return drawn


class Picture(Figure):
    """A Figure that a notebook shows whether or not pyplot is loaded."""

    def _repr_png_(self) -> bytes:
        return png(self)


def picture(rows: Sequence[Row], names: Sequence[str], title: str) -> bytes:
    """The bytes of a PNG of panels; arguments and errors as for `compose`."""
    return png(compose(rows, names, title))


def compose(rows: Sequence[Row], names: Sequence[str], title: str) -> Picture:
    """Panels side by side under one title.

    Args:
        rows: what they draw.
        names: of registered figures, `NAME` or `NAME:ARGUMENT`.
        title: plain text, of any length and of one or more lines.

    Raises:
        UnknownName: there is no such figure.
        ValueError: no figure is named.
    """
    if not names:
        raise ValueError("a picture of no figures: expected at least one name")
    columns = min(len(names), MOST_COLUMNS)
    height = math.ceil(len(names) / columns)
    width, panel = PANEL_INCHES
    figure = Picture(figsize=(width * columns, panel * height + 0.4))
    figure.set_layout_engine("constrained", wspace=0.06)
    axes = list(figure.subplots(height, columns, squeeze=False).ravel())
    while len(axes) > len(names):
        axes.pop().remove()
    for name, ax in zip(names, axes):
        draw(name, rows, ax)
    _share_limits(names, axes)
    _legends(figure, axes)
    # The suptitle does not wrap by itself; an inch holds some 11 characters of this size.
    lines = [wrapped(in_picture(line), int(11 * width * columns)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    return render(figure, "png")


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file; equal figures give equal bytes.

    Args:
        figure: Figure.
        kind: one of KINDS.
    """
    content = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(
        {"svg.hashsalt": "bn_keras", "pdf.fonttype": 42}  # journals refuse matplotlib's type 3
    ):
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(content, format=kind, dpi=DPI, metadata=KINDS[kind])
    return content.getvalue()


def _share_limits(names: Sequence[str], axes: Sequence[Axes]) -> None:
    """Gives panels of one kind a common vertical axis, where their figure asks for it."""
    kinds: dict[str, list[Axes]] = {}
    for name, ax in zip(names, axes):
        kind = name.partition(":")[0]
        if FIGURES.properties(kind).get("common_limits") and ax.lines:
            kinds.setdefault(kind, []).append(ax)
    for alike in kinds.values():
        limits = [ax.get_ylim() for ax in alike]
        for ax in alike:
            ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels if it is the same for all, else one below each."""
    known: list[tuple[Axes, Any, list[str]]] = [
        (ax, *ax.get_legend_handles_labels()) for ax in axes if not ax.get_legend()
    ]
    known = [entry for entry in known if entry[2]]
    if len(known) > 1 and all(labels == known[0][2] for _, _, labels in known):
        _, handles, labels = known[0]
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9,
                      handlelength=HANDLE_LENGTH)
        return
    for ax, _, _ in known:
        legend_below(ax)
