"""The final figure of every run over a setting that a sweep varies."""

import math
from typing import Any, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.metrics import describe
from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import (
    MEDIAN_WIDTH,
    accuracy_floor,
    by_arm,
    label,
    meaning,
    nothing,
    styles,
)
from bn_keras.study import Row, net_of
from bn_keras.texts import in_picture

ACCURACY, LOSS = "validation_accuracy", "validation_loss"


@FIGURES.register("over")
def over(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws validation accuracy, or loss where the labels are numbers, over one setting.

    How to read it: a thin line is a seed, the bold one the median over seeds. A run that diverged
    is an x at the worse end, where it counts in the median; the median is not drawn where half of
    the seeds diverged. With more than one axis, a point is the best of a net over the others.

    Args:
        rows: Rows of a sweep.
        ax: axes.
        argument: the setting; "learning_rate" by default.
    """
    axis = argument or "learning_rate"
    swept = [row for row in rows if axis in row.settings]
    name = ACCURACY if any(ACCURACY in row.metrics for row in swept) else LOSS
    known = describe(name)
    values = [row.metrics.get(name) for row in swept]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return nothing(ax, f"no run has a {known.title} over {axis}", rows)
    # One line a net, whatever the other axes are.
    nets = [_as_net(row) for row in swept]
    points = list(dict.fromkeys(row.settings[axis] for row in swept))
    if all(type(point) in (int, float) for point in points):
        points.sort()
    numeric = all(type(point) in (int, float) for point in points)
    places: dict[Any, float] = {
        point: float(point) if numeric else place for place, point in enumerate(points)
    }
    looks = styles(nets)
    lost = False
    arms = by_arm(nets)
    high = known.worse == "high"
    for place, (net, runs) in enumerate(arms.items()):
        color, line = looks[net]
        by_seed: dict[int, dict[Any, float]] = {}
        for row in runs:
            found = row.metrics.get(name)
            value = known.worst if found is None else found
            here = by_seed.setdefault(row.seed, {})
            better = min if high else max
            here[row.settings[axis]] = better(value, here.get(row.settings[axis], known.worst))
        for of_seed in by_seed.values():
            line_of = [(places[p], of_seed[p]) for p in points
                       if p in of_seed and math.isfinite(of_seed[p])]
            ax.plot(*np.array(line_of).reshape(-1, 2).T, color=color, linestyle=line,
                    linewidth=0.8, alpha=0.6, marker="." if len(points) < 3 else "")
            gone = [places[p] for p in points if p in of_seed and not math.isfinite(of_seed[p])]
            lost = lost or bool(gone)
            if gone:
                height = 0.98 - 0.03 * place if high else 0.02 + 0.03 * place
                ax.plot(gone, [height] * len(gone), color=color, marker="x", markersize=8,
                        markeredgewidth=1.8, linestyle="", clip_on=False, zorder=5,
                        transform=ax.get_xaxis_transform())
        middle = [float(np.median([of[p] for of in by_seed.values() if p in of] or [math.nan]))
                  for p in points]
        shown = [(places[p], value) for p, value in zip(points, middle) if math.isfinite(value)]
        ax.plot(*np.array(shown).reshape(-1, 2).T, color=color, linestyle=line, marker="o",
                linewidth=MEDIAN_WIDTH,
                label=label(net, list({row.seed: row for row in runs}.values())))
    xs = list(places.values())
    if numeric and min(xs) > 0 and max(xs) / min(xs) >= 8:
        ax.set_xscale("log")
    if not numeric or len(points) < 8:
        ax.set_xticks(xs, [f"{p:g}" if type(p) is float else in_picture(p) for p in points])
        ax.minorticks_off()
    if name == ACCURACY:
        ax.set_ylim(accuracy_floor(min(finite)) - 0.02, 1.02)
    elif min(finite) > 0 and max(finite) / min(finite) > 30:
        ax.set_yscale("log")
    ax.set_xlabel(in_picture(axis.replace("_", " ")))
    ax.set_ylabel(in_picture(known.title))
    ax.set_title(f"after training\n{meaning(nets, lost=lost)}", fontsize=10)
    ax.grid(alpha=0.3)
    return ax


def _as_net(row: Row) -> Row:
    """The row under the name of its net."""
    return Row(
        net_of(row.arm), row.seed, row.status, row.metrics, normalizer=row.normalizer,
        settings=row.settings,
    )
