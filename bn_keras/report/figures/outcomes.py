"""The final figure of every run, a point a seed."""

import math
from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.metrics import describe
from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import (
    accuracy_floor,
    by_arm,
    named,
    nothing,
    styles,
    wrapped,
)
from bn_keras.report.numbers import number
from bn_keras.results import DIVERGED
from bn_keras.study import Row
from bn_keras.texts import in_picture

MARKERS = "o^sDvP*Xp"


@FIGURES.register("outcomes")
def outcomes(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws one metric of every run: a line an arm, a marker a seed, a bar at the median.

    How to read it: two clouds of markers in one line are runs of two kinds, such as those that
    learned and those that did not; the median then lies in the larger one. Faint lines join runs of
    one seed, if there are two arms: where all lean the same way, every pair differs in the same
    direction. Diverged runs have no value; they are an x at the panel's worst end.

    Args:
        rows: Rows.
        ax: axes.
        argument: the metric; `validation_accuracy` by default.
    """
    name = argument or "validation_accuracy"
    known = describe(name)
    arms = {arm: runs for arm, runs in by_arm(rows).items()
            if any(name in row.metrics for row in runs)}
    found = [row.metrics.get(name) for runs in arms.values() for row in runs]
    values = [value for value in found if value is not None]
    if not values:
        return nothing(ax, f"no run has a value of {name}", rows)
    low, high = _limits(name, values)
    logarithmic = low > 0 and high / low > 30
    if logarithmic:
        ax.set_xscale("log")
    ax.set_xlim(low, high)
    worst = low if known.worse != "high" else high
    looks = styles(rows)
    places: dict[int, list[tuple[float, float]]] = {}
    ticks = []
    for y, (arm, runs) in enumerate(arms.items()):
        color, _ = looks[arm]
        marker = MARKERS[y % len(MARKERS)]
        shifts = np.linspace(-0.18, 0.18, len(runs)) if len(runs) > 1 else [0]
        for row, shift in zip(runs, shifts):
            value = row.metrics.get(name)
            x = worst if value is None else value
            ax.plot(
                x, y + shift, marker="x" if value is None else marker, color=color, markersize=7,
                markerfacecolor="none", markeredgewidth=1.6, linestyle="", clip_on=False,
            )
            places.setdefault(row.seed, []).append((x, y + shift))
        lost = -math.inf if worst == low else math.inf
        middle = float(np.median([lost if row.metrics.get(name) is None else row.metrics[name]
                                  for row in runs]))
        if math.isfinite(middle):
            ax.plot([middle, middle], [y - 0.32, y + 0.32], color=color, linewidth=3,
                    solid_capstyle="butt")
        shown = number(middle) if math.isfinite(middle) else "none"
        ticks.append(_tick(arm, runs, name, f"median {shown}" if len(runs) > 1 else shown))
    joined = len(arms) == 2  # between more, lines are a thicket
    if joined:
        for seed_places in places.values():
            ax.plot(*np.array(seed_places).T, color="black", linewidth=0.5, alpha=0.25, zorder=0)
    ax.set_yticks(range(len(arms)), ticks, fontsize=8 if len(arms) < 9 else 7)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    title = in_picture(known.title)
    unit = f" [{known.unit}]" if known.unit else ""
    ax.set_xlabel(f"{title}{unit}{' (logarithmic)' if logarithmic else ''}")
    gone = any(row.metrics.get(name) is None for runs in arms.values() for row in runs)
    heading = "after training" + joined * "; faint lines join the runs of a seed"
    ax.set_title(f"{heading}\na marker a seed, bar: median{', x: no value' * gone}", fontsize=10)
    ax.grid(alpha=0.3, axis="x")
    return ax


def _tick(arm: str, runs: Sequence[Row], name: str, middle: str) -> str:
    """An arm's name, wrapped, over how many seeds it has and what their median is."""
    lost = sum(row.status == DIVERGED for row in runs)
    never = sum(row.metrics.get(name) is None for row in runs) - lost
    told = [f"n = {len(runs)}", middle]
    if lost:
        told.append(f"{lost} diverged")
    if never > 0:
        told.append(f"{never} without")
    return f"{wrapped(named(arm), 22)}\n{', '.join(told)}"  # a long name takes room from the points


def _limits(name: str, values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if "accuracy" in name:
        bottom = accuracy_floor(low)
        return bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom)
    if low > 0 and high / low > 30:
        return low / 1.5, high * 1.5
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
