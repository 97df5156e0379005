"""Shared by the figures: colours, line styles, labels, thin lines of seeds and a bold median."""

import math
import textwrap
from typing import Any, Mapping, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.report.numbers import count
from bn_keras.results import DIVERGED
from bn_keras.study import Row
from bn_keras.texts import in_picture

# Okabe & Ito's colours, told apart by the colour-blind; the line styles survive grey print.
STYLES: Mapping[str, tuple[str, Any]] = {
    "none": ("#7f7f7f", "--"),
    "batch": ("#0072b2", "-"),
    "keras_batch": ("#56b4e9", "-."),
    "layer": ("#e69f00", (0, (5, 1))),
    "group": ("#009e73", (0, (3, 1, 1, 1))),
}
OTHERS = ("#d55e00", "#cc79a7", "#e69f00", "#009e73", "#56b4e9")
DASHES = (":", "-.", (0, (6, 2)), (0, (1, 1)), (0, (8, 2, 1, 2)))
# Further arms with a normalizer keep to its family of colours, and differ in their lines.
FAMILIES: Mapping[str, tuple[tuple[str, Any], ...]] = {
    "none": (("#000000", ":"), ("#b0b0b0", "-."), ("#555555", (0, (6, 2))), ("#7f7f7f", ":")),
    "batch": (
        ("#56b4e9", ":"), ("#003f66", "-."), ("#7b8fd6", (0, (4, 1.5))), ("#0072b2", (0, (6, 2))),
    ),
}
MEDIAN_WIDTH = 2.6  # of the bold lines, in points
HANDLE_LENGTH = 5  # of a line in a legend, in font sizes: room for all of a pattern of dashes
LABELS = {"none": "no normalization", "batch": "batch normalization"}


def styles(rows: Sequence[Row]) -> dict[str, tuple[str, Any]]:
    """(color, line style) of every arm.

    The arm of a normalizer's own name has its look, else the first arm with that normalizer: no
    normalizer is always the same grey, BN always the same blue.
    """
    normalizers = {row.arm: row.normalizer or row.arm for row in rows}
    found: dict[str, tuple[str, Any]] = {}
    for arm in normalizers:
        if arm in STYLES:
            found[arm] = STYLES[arm]
    used: dict[str, int] = {}
    others = 0
    for arm, normalizer in normalizers.items():
        if arm in found:
            continue
        if normalizer in STYLES and STYLES[normalizer] not in found.values():
            found[arm] = STYLES[normalizer]
        elif normalizer in FAMILIES:
            family, number = FAMILIES[normalizer], used.get(normalizer, 0)
            found[arm] = family[number % len(family)]
            used[normalizer] = number + 1
        else:
            found[arm] = (OTHERS[others % len(OTHERS)], DASHES[others % len(DASHES)])
            others += 1
    return {arm: found[arm] for arm in normalizers}


def by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by arm, in the order of first appearance."""
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    return arms


def named(arm: str) -> str:
    """An arm as pictures call it."""
    return LABELS.get(arm, in_picture(arm))


def label(arm: str, rows: Sequence[Row]) -> str:
    """An arm with its number of seeds, and how many of them diverged: for legends."""
    lost = sum(row.status == DIVERGED for row in rows)
    told = f", {lost} diverged" if lost else ""
    return f"{named(arm)} ({count(len(rows), 'seed')}{told})"


def wrapped(text: str, width: int) -> str:
    """A text in lines of at most `width` characters, broken between words alone."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def meaning(rows: Sequence[Row], lost: Optional[bool] = None) -> str:
    """Words for titles that explain the lines of seeds and medians.

    Args:
        rows: what is drawn.
        lost: whether there is an x; by default, whether a row diverged.
    """
    if lost is None:
        lost = any(row.status == DIVERGED for row in rows)
    single = all(len(runs) == 1 for runs in by_arm(rows).values())
    return f"{'one seed' if single else 'thin: one seed, bold: median'}{', x: diverged' * lost}"


def seeds_and_median(
    ax: Axes, arm: str, rows: Sequence[Row], name: str, look: tuple[str, Any],
    worst: float, unit: float = 1,
) -> bool:
    """Draws a curve of every seed of one arm thin, and their median bold.

    A diverged run's curve ends in an x. From there on it counts as worst in the median, if it is
    known which end is the worst; else the median ends there, too.

    Args:
        ax: axes.
        arm: name of the arm.
        rows: its rows.
        name: of the curve.
        look: (color, line style).
        worst: as `Metric.worst`.
        unit: steps in one unit of the horizontal axis.

    Returns:
        Whether there was anything to draw.
    """
    color, line = look
    points = [finite_points(row.curves.get(name, [])) for row in rows]
    if not any(map(len, points)):
        if any(row.status == DIVERGED for row in rows):  # the legend alone has it
            ax.plot([], [], color=color, marker="x", linestyle="", label=label(arm, rows))
        return False
    for row, curve in zip(rows, points):
        few = "." if len(curve) < 3 else ""
        ax.plot(*(curve / (unit, 1)).T, color=color, linestyle=line, linewidth=0.8, alpha=0.6,
                marker=few)
        if row.status == DIVERGED and len(curve):
            ax.plot(*(curve[-1] / (unit, 1)), color=color, marker="x", markersize=9,
                    markeredgewidth=2, linestyle="", clip_on=False, zorder=5)
    steps, middle = median_curve(rows, points, worst)
    ax.plot(steps / unit, middle, color=color, linestyle=line,
            linewidth=MEDIAN_WIDTH, marker="o" if len(steps) < 3 else "", label=label(arm, rows))
    return True


def finite_points(curve: Sequence[Any]) -> np.ndarray:
    """A curve as an array (points, 2), without points whose value is missing or not finite."""
    found = np.array([[step, math.nan if value is None else value] for step, value in curve], float)
    found = found.reshape(-1, 2)
    finite: np.ndarray = found[np.isfinite(found[:, 1])]
    return finite


def median_curve(
    rows: Sequence[Row], points: Sequence[np.ndarray], worst: float
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the median over seeds, up to the last step at which it is finite.

    Args:
        rows: the runs.
        points: their curves, arrays (points, 2).
        worst: the value of a diverged run; NaN if such a run ends the median.
    """
    curves = [dict(curve.tolist()) for curve in points]
    steps = sorted(set().union(*curves))
    kept, values = [], []
    for step in steps:
        # A run that went on but was not measured at this step has no part in it.
        here = [curve.get(step, worst) for row, curve in zip(rows, curves)
                if step in curve or row.status == DIVERGED]
        middle = math.nan if any(map(math.isnan, here)) else float(np.median(here))
        if not math.isfinite(middle):
            break
        kept.append(step)
        values.append(middle)
    return np.array(kept, float), np.array(values, float)


def legend_below(ax: Axes) -> None:
    """A legend under the axes, where it covers nothing."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=1, fontsize=8, frameon=False,
              handlelength=HANDLE_LENGTH)


def nothing(ax: Axes, why: str, rows: Sequence[Row] = ()) -> Axes:
    """Axes that say why they are empty, and which of the rows diverged."""
    for line in list(ax.lines):  # those of the legend
        line.remove()
    lost = [label(arm, runs) for arm, runs in by_arm(rows).items()
            if any(row.status == DIVERGED for row in runs)]
    ax.set_axis_off()
    ax.text(0.5, 0.5, "\n".join([in_picture(why), *lost]), ha="center", va="center", wrap=True,
            fontsize=9, transform=ax.transAxes)
    return ax


def accuracy_floor(lowest: float) -> float:
    """The bottom of an axis of accuracies: 0, or the tenth below them all, at most .9."""
    return min(math.floor(10 * lowest) / 10, 0.9) if lowest > 0.5 else 0.0


def limit_accuracy(ax: Axes) -> None:
    """From 0 to 1, or from less far down where all is above one half and differs by little."""
    values = [value for line in ax.lines for value in np.ravel(line.get_ydata())
              if math.isfinite(value)]
    bottom = accuracy_floor(min(values, default=0))
    ax.set_ylim(bottom - 0.01 * (1 - bottom), 1 + 0.02 * (1 - bottom))
