"""The accuracy of one net under each bug of evaluation."""

import re
from typing import Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import by_arm, nothing, wrapped
from bn_keras.report.numbers import count
from bn_keras.results import DIVERGED
from bn_keras.study import Row
from bn_keras.texts import in_picture

# Size of the evaluation's batches: the metric's last part, marker and colour.
BATCHES = {
    "whole": ("one batch", "s", "#000000"),
    "16": ("batches of 16", "^", "#0072b2"),
    "2": ("batches of 2", "o", "#d55e00"),
    "1": ("one by one", "x", "#cc79a7"),
}
# A pitfall in the words of the tables, by the metric's middle part.
WORDS = {
    "correct": "correct inference",
    "never_updated": "statistics never updated",
    "conv_never_updated": "never updated, convolution only",
    "batch_statistics": "batch statistics in all BN layers",
    "dense_batch_statistics": "batch statistics in dense layers",
    "as_written": "as written: two bugs at once",
    "dropout_active": "dropout left active",
    "without_bn": "evaluation graph without BN",
}
METRIC = re.compile(r"^pitfall/([^/]+)/(whole|16|2|1)$")


@FIGURES.register("pitfalls")
def pitfalls(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws the accuracy of a net with each bug, a marker for every size of evaluation batches.

    How to read it: markers on top of each other belong to an evaluation that gives an image the
    same answer in any company; where they lie apart, the answer depends on the batch. Compare with
    the topmost line, which has no bug.

    Args:
        rows: Rows with the metrics `pitfall/NAME/whole`, `/16`, `/2` and `/1`.
        ax: axes.
        argument: the net: arms of that name, and those named `NET, VARIANT`; all arms by default.
    """
    mine = [row for row in rows
            if argument is None or row.arm == argument or row.arm.startswith(f"{argument}, ")]
    lines: dict[str, dict[str, list[float]]] = {}
    for arm, runs in by_arm(mine).items():
        variant = arm if argument is None else arm[len(argument):].lstrip(", ")
        for row in runs:
            for name, value in row.metrics.items():
                found = METRIC.match(name)
                if found and value is not None:
                    words = wrapped(WORDS.get(found[1], found[1].replace("_", " ")), 24)
                    words += f"\n({variant})" if variant else ""
                    batches = lines.setdefault(words, {batch: [] for batch in BATCHES})
                    batches[found[2]].append(value)
    if not lines:
        return nothing(ax, f"no run{f' of {argument}' if argument else ''} has the accuracies of a "
                       "pitfall")
    for batch, (shown, marker, color) in BATCHES.items():
        points = [(value, y) for y, found in enumerate(lines.values()) for value in found[batch]]
        ax.plot(*np.array(points).reshape(-1, 2).T, marker=marker, color=color, markersize=8,
                label=f"evaluated in {shown}" if batch != "1" else "evaluated one by one",
                markeredgewidth=1.6, clip_on=False, linestyle="",
                markerfacecolor=color if marker == "x" else "none")
    ticks = ["\n".join(map(in_picture, line.splitlines())) for line in lines]
    ax.set_yticks(range(len(lines)), ticks, fontsize=7.5)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("accuracy on test images")
    ax.grid(alpha=0.3)
    images = {int(row.metrics["pitfall/images"] or 0) for row in mine
              if "pitfall/images" in row.metrics}
    seeds = len({row.seed for row in mine})
    lost = sum(row.status == DIVERGED for row in mine)
    heading = in_picture(argument or "all nets")
    if images:
        heading += f", {max(images)} test images"
    if lost:
        heading += f", {count(lost, 'run')} diverged"
    ax.set_title(f"{heading}\na marker a seed, {count(seeds, 'seed')}", fontsize=10)
    return ax
