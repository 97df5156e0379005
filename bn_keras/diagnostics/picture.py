"""The doctor's picture: how far each layer's averages are off, and the parts of the gap.

How to read it: on the left and in the middle a bar for each batch normalization, the first layer at
the top; no bar means that its moving averages are exact. On the right the terms of the gap between
inference and training mode with their 95 % intervals; a term whose interval leaves out 0 is real.
"""

from typing import Any, Optional, Protocol, Sequence

import numpy as np

from bn_keras.diagnostics.gap import Gap
from bn_keras.texts import in_picture

BAR, WORST, GREY = "#56b4e9", "#d55e00", "#7f7f7f"  # of Okabe & Ito's colours
MOST_NAMES = 30  # layers whose names can be read beside the bars
TERMS = {"lag": "averages lag", "shift": "statistics shift", "data": "other data",
         "noise": "noise of the batch", "total": "total"}


class Row(Protocol):
    """What is drawn of a layer, as `bn_keras.diagnosis.LayerRow` has it."""

    path: str
    shift: Optional[float]
    factor: Optional[float]


def draw(title: str, rows: Sequence[Any], gap: Optional[Gap]) -> Any:
    """Draws the picture.

    Args:
        title: the model, in words.
        rows: a Row for each layer.
        gap: None leaves out its part.

    Returns:
        A matplotlib Figure, which belongs to no window.

    Raises:
        ValueError: nothing was measured that could be drawn.
    """
    from matplotlib.figure import Figure

    measured = any(row.shift is not None for row in rows)
    if not measured and gap is None:
        raise ValueError(
            f"figure: nothing was measured of {title}; expected doctor(model, data) for a model "
            "with batch normalization that can be run."
        )
    panels = 2 * measured + (gap is not None)
    height = min(max(3.0, 1.2 + 0.22 * len(rows)), 9.0)
    figure = Figure(figsize=(4.2 * panels, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if measured:
        first, second = axes[:2]
        shifts, factors = [row.shift for row in rows], [row.factor for row in rows]
        _bars(first, rows, shifts, 0.0, 0.1, "moving mean off by\n(standard deviations)")
        _bars(second, rows, factors, 1.0, 1.25, "moving variance off by\n(factor, 1: exact)")
        second.set_xscale("log")
        second.set_yticks([])
        second.set_ylabel("")
    if gap is not None:
        _terms(axes[-1], gap)
    figure.suptitle(f"{in_picture(title)}: BN layers by depth", fontsize=10)
    return figure


def _bars(
    ax: Any, rows: Sequence[Row], given: Sequence[Optional[float]], start: float, least: float,
    title: str,
) -> None:
    """Bars from `start` on an axis that goes to `least` at least."""
    places = np.arange(len(rows))
    values = np.array([np.nan if value is None else value for value in given])
    finite = np.isfinite(values)
    shown = np.where(finite, values, start)
    worst = (shown == shown.max()) & (shown > least)
    ax.barh(places, shown - start, left=start, color=np.where(worst, WORST, BAR))
    for place in places[~finite]:
        told = " not measured" if given[place] is None else " not finite"
        ax.text(start, place, told, va="center", fontsize=7, color=GREY)
    if len(rows) <= MOST_NAMES:
        ax.set_yticks(places, [in_picture(row.path) for row in rows], fontsize=7)
    else:
        ax.set_ylabel("layer, the first at the top")
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(start, max(1.05 * shown.max(), least))
    ax.set_title(title, fontsize=9)


def _terms(ax: Any, gap: Gap) -> None:
    for place, (name, term) in enumerate(gap.terms.items()):
        color = WORST if name == gap.worst else GREY if name == "total" else BAR
        ax.barh(place, term.value if np.isfinite(term.value) else 0.0, color=color)
        if term.low is not None and term.high is not None:
            ax.plot([term.low, term.high], [place, place], color="black", linewidth=1.2)
    names = [TERMS.get(name, name) for name in gap.terms]
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_title(
        f"loss {gap.inference:.3g} in inference mode,\n{gap.training:.3g} in training mode: why\n"
        "(line: 95 % interval over batches)", fontsize=9,
    )
    ax.set_xlabel("difference of the loss", fontsize=8)
