"""A curve of every run over the training steps."""

from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.metrics import describe
from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import (
    by_arm,
    limit_accuracy,
    meaning,
    nothing,
    seeds_and_median,
    styles,
)
from bn_keras.study import Row
from bn_keras.texts import in_picture


@FIGURES.register("curve")
def curve(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws one curve of every run: seeds thin, their median bold.

    How to read it: a thin line is one seed, and a bold line the median of an arm's seeds. An x is
    where a run diverged; from there on it counts as the worst in the median, which ends where half
    of the runs have diverged. A panel of accuracies begins at 0 unless all of it lies above .5.

    Args:
        rows: Rows.
        ax: axes.
        argument: the curve, such as `accuracy/validation`; the default is that one.
    """
    name = argument or "accuracy/validation"
    known = describe(name)
    looks = styles(rows)
    drawn = [
        seeds_and_median(ax, arm, runs, name, looks[arm], known.worst)
        for arm, runs in by_arm(rows).items()
    ]
    if not any(drawn):
        return nothing(ax, f"no run has a point of the curve {name}", rows)
    heading = in_picture(known.title)
    ax.set_title(f"{heading}\n{meaning(rows)}", fontsize=10)
    kind, unit = name.partition("/")[0], known.unit
    ax.set_ylabel(f"{kind}{f' [{unit}]' if unit else ''}")
    ax.set_xlabel("training steps")
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    if kind == "accuracy":
        limit_accuracy(ax)
    elif all((np.asarray(line.get_ydata()) > 0).all() for line in ax.lines):
        ax.set_yscale("log")
        ax.set_ylabel(f"{ax.get_ylabel()} (logarithmic)")
    return ax
