"""Percentiles of one unit's input over training."""

from typing import Optional, Sequence

from matplotlib.axes import Axes

from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import finite_points, named, nothing, styles
from bn_keras.results import DIVERGED
from bn_keras.study import Row

LINES = {15: ":", 50: "-", 85: "--"}


@FIGURES.register("percentiles", common_limits=True)
def percentiles(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws figure 1 (b, c) of Ioffe & Szegedy (2015): what one unit sees over the steps.

    How to read it: the three lines are the 15th, 50th and 85th percentile of the input of one
    sigmoid of the last hidden layer over the images of the curve. The steadier they are, the less
    that unit has to follow. One seed is bold; the others, whose unit is another one, are faint.

    Args:
        rows: Rows with the curves `unit/p15`, `unit/p50` and `unit/p85`.
        ax: axes.
        argument: the arm; the first one that has the curves by default.
    """
    having = [row for row in rows if "unit/p50" in row.curves]
    arm = argument or (having[0].arm if having else None)
    runs = [row for row in having if row.arm == arm]
    if not runs:
        return nothing(ax, f"no run of {arm} has the percentiles of a unit" if arm else
                       "no run has the percentiles of a unit")
    color, _ = styles(rows)[runs[0].arm]
    for number, row in enumerate(runs):
        for percentile, line in LINES.items():
            points = finite_points(row.curves.get(f"unit/p{percentile}", []))
            first = number == 0
            ax.plot(*points.T, color=color, linestyle=line, linewidth=2 if first else 0.6,
                    alpha=1 if first else 0.35, marker="o" if first and len(points) < 3 else "",
                    label=f"{percentile}th percentile" if first else None)
            if row.status == DIVERGED and len(points):
                ax.plot(*points[-1], color=color, marker="x", markersize=8, linestyle="")
    ax.set_xlim(left=0)
    ax.set_xlabel("training steps")
    ax.set_ylabel("input of one unit")
    ax.set_title(
        f"{named(runs[0].arm)}, last hidden layer\nseed {runs[0].seed}"
        + (f" bold, {len(runs) - 1} more faint" if len(runs) > 1 else ""), fontsize=10,
    )
    ax.grid(alpha=0.3)
    return ax
