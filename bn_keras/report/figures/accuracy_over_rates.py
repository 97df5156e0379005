"""Accuracy over the learning rate, for a ladder of rates."""

import re
from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import (
    MEDIAN_WIDTH,
    by_arm,
    label,
    meaning,
    nothing,
    styles,
)
from bn_keras.study import Row

RATE = re.compile(r"^test_accuracy_at_(.+)$")


@FIGURES.register("accuracy_over_rates")
def accuracy_over_rates(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws the final accuracy of every net over the learning rate, the largest workable one named.

    How to read it: a net works at a rate where its line is above the dotted one. The numbers above
    the panel are the median over seeds of the largest rate at which a net works before it first
    fails. A diverged run has no accuracy; it is an x at the bottom and counts as lowest in the
    median, which is not drawn where half of the seeds diverged. The line of a net that is listed
    earlier is the wider one: it shows on both sides of another that lies on it.

    Args:
        rows: Rows of a ladder, with the metrics `test_accuracy_at_RATE` and
            `largest_workable_rate`.
        ax: axes.
        argument: the accuracy that a workable rate reaches; .9 by default.
    """
    workable = float(argument or 0.9)
    looks = styles(rows)
    drawn, told, anywhere = False, 0, False
    arms = by_arm(rows)
    for place, (arm, runs) in enumerate(arms.items()):
        seeds = [_by_rate(row) for row in runs]
        rates = sorted(set().union(*seeds))
        if not rates:
            continue
        drawn = True
        color, line = looks[arm]
        for found in seeds:
            known = [(rate, value) for rate, value in sorted(found.items()) if value is not None]
            ax.plot(*np.array(known).reshape(-1, 2).T, color=color, linestyle=line, linewidth=0.8,
                    alpha=0.6)
            lost = [rate for rate, value in found.items() if value is None]
            anywhere = anywhere or bool(lost)
            ax.plot(lost, [0.03 * place] * len(lost), color=color, marker="x", markersize=8,
                    markeredgewidth=1.8, linestyle="", clip_on=False, zorder=5)
        middle = np.array([
            np.median([-np.inf if found[rate] is None else found[rate]
                       for found in seeds if rate in found])
            for rate in rates
        ])
        middle[np.isinf(middle)] = np.nan  # half of the seeds or more diverged
        ax.plot(rates, middle, color=color, linestyle=line, marker="o",
                linewidth=MEDIAN_WIDTH + 4 * (1 - (place + 1) / len(arms)), label=label(arm, runs))
        # A net that works at no rate counts as a rate of 0.
        largest = [row.metrics["largest_workable_rate"] or 0 for row in runs
                   if "largest_workable_rate" in row.metrics]
        if largest and np.median(largest) > 0:
            ax.text(float(np.median(largest)), 1.02 + 0.055 * told, f"{np.median(largest):.3g}",
                    color=color, ha="center", weight="bold", fontsize=9)
            told += 1
    if not drawn:
        return nothing(ax, "no net has an accuracy at a learning rate", rows)
    ax.axhline(workable, color="black", linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate (logarithmic)")
    ax.set_ylabel("test accuracy after training")
    ax.set_ylim(-0.02, 1.03 + 0.055 * told)  # room for the numbers
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.grid(alpha=0.3)
    heading = f"numbers: largest workable rate (dotted: {workable:.0%})"
    if not told:
        heading = f"no net has a workable rate in the median (dotted: {workable:.0%})"
    ax.set_title(f"{heading}\n{meaning(rows, lost=anywhere)}", fontsize=10)
    return ax


def _by_rate(row: Row) -> dict[float, Optional[float]]:
    found = {}
    for name, value in row.metrics.items():
        match = RATE.match(name)
        if match:
            found[float(match[1])] = value
    return found
