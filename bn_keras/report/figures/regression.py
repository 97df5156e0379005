"""Regressions of one number: the fit, the error over epochs, and the activations at the start.

All three panels show the arms whose frames are stored and whose name begins with the argument.
"""

from typing import Callable, Mapping, Optional, Sequence

import numpy as np
from matplotlib.axes import Axes

from bn_keras.registry import FIGURES
from bn_keras.report.figures.drawing import (
    MEDIAN_WIDTH,
    by_arm,
    meaning,
    named,
    nothing,
    seeds_and_median,
    styles,
)
from bn_keras.results import DIVERGED
from bn_keras.study import Row

FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0),
}


def _with_frames(rows: Sequence[Row], argument: Optional[str]) -> list[Row]:
    """The rows with frames, one an arm."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.frames and (argument is None or row.arm.split(" ")[0] == argument):
            found.setdefault(row.arm, row)
    return list(found.values())


@FIGURES.register("fits")
def fits(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws the examples and each net's outputs after the last frame, one seed of each net.

    How to read it: a flat line has learned no more than the mean. A net that diverged has no line;
    the legend names it.

    Args:
        rows: Rows with frames.
        ax: axes.
        argument: the first word of the arms' names; all arms by default.
    """
    nets = [row for row in _with_frames(rows, argument) if "fitted" in row.frames]
    if not nets:
        return nothing(ax, "no run has stored what its net makes of the examples")
    frames = nets[0].frames
    ax.scatter(frames["x"], frames["y"], s=9, facecolor="none", edgecolor="black", linewidth=0.5,
               label=f"{len(frames['y'])} test points")
    looks = styles(nets)
    for net in nets:
        color, line = looks[net.arm]
        shown = f"{named(net.arm)}, seed {net.seed}"
        if net.status == DIVERGED:  # its outputs are no fit
            ax.plot([], [], color=color, marker="x", linestyle="", label=f"{shown}: diverged")
            continue
        ax.plot(net.frames["grid"], net.frames["fitted"][-1], color=color, linestyle=line,
                linewidth=MEDIAN_WIDTH, label=shown)
    ax.set(xlabel="x", ylabel="y")
    ax.set_title(f"{argument or 'all nets'}: data and fit\none seed of each net", fontsize=10)
    return ax


@FIGURES.register("errors")
def errors(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws the test error of all seeds of these nets over epochs.

    How to read it: a tenfold lower line is an error about three times as small. A thin line is one
    seed, a bold one their median, an x a run that diverged.

    Args:
        rows: Rows with the curve `loss/test`, one of each arm with frames.
        ax: axes.
        argument: the first word of the arms' names; all arms by default.
    """
    nets = _with_frames(rows, argument)
    looks, arms = styles(nets), by_arm(rows)
    drawn = []
    for net in nets:
        steps, epochs = net.frames["steps"], net.frames["epochs"]
        unit = float(steps[-1] / epochs[-1]) if epochs[-1] else 1.0
        drawn.append(seeds_and_median(
            ax, net.arm, arms[net.arm], "loss/test", looks[net.arm], np.inf, unit
        ))
    if not any(drawn):
        return nothing(ax, "no run has stored its test error over the epochs", rows)
    ax.set_yscale("log")
    ax.set(xlabel="epochs", ylabel="test mean squared error (logarithmic)")
    shown = [row for net in nets for row in arms[net.arm]]
    ax.set_title(f"{argument or 'all nets'}: error\n{meaning(shown)}", fontsize=10)
    ax.grid(alpha=0.3, which="both")
    return ax


@FIGURES.register("starts")
def starts(rows: Sequence[Row], ax: Axes, argument: Optional[str] = None) -> Axes:
    """Draws an activation function over where a net's pre-activations lie before training.

    How to read it: the bars are the pre-activations of each hidden layer of the net without BN, one
    seed. Healthy ones lie on tanh's slope and not on its flat ends; for relu, those left of the
    bend have an output and a slope of 0.

    Args:
        rows: Rows with frames.
        ax: axes.
        argument: the activation function, tanh or relu, which is the first word of the arms' names.

    Raises:
        ValueError: another activation function.
    """
    if argument is None or argument not in FUNCTIONS:
        raise ValueError(f"starts:{argument}: expected one of {', '.join(FUNCTIONS)}")
    nets = _with_frames(rows, argument)
    if not nets:
        return nothing(ax, "no run has stored where its activations started")
    net = next((row for row in nets if row.normalizer == "none"), nets[0])
    color, _ = styles(nets)[net.arm]
    x = np.linspace(-2.5, 2.5, 200)
    ax.plot(x, FUNCTIONS[argument](x), color="black", linewidth=2)
    ax.axvline(0, color="black", linewidth=0.6, linestyle=":")
    hidden = list(net.frames["layers"])[:-1]
    for number, layer in enumerate(hidden, start=1):
        values = net.frames[f"{layer}/output"][0]
        height = -1.3 - 0.3 * number
        low, high = values.min(), values.max()
        ax.plot([low, high], [height, height], color=color, linewidth=4, solid_capstyle="butt")
        ax.plot(np.median(values), height, color="black", marker="|", markersize=7)
        std = values.std(0, dtype=np.float64).mean()  # of equal float32 it would not be 0
        ax.text(2.45, height, f"layer {number}: std {std:.1g}", fontsize=8, ha="right", va="center")
    ax.text(-2.45, -1.32, "pre-activations, lowest to highest (|: median)", fontsize=8, va="center")
    ax.set(xlim=(-2.5, 2.5), ylim=(-1.5 - 0.3 * len(hidden), 2.5), yticks=[-1, 0, 1, 2],
           xlabel="pre-activation", ylabel=f"{argument} of it")
    ax.yaxis.set_label_coords(-0.09, 0.7)
    ax.set_title(f"before training\n{named(net.arm)}, seed {net.seed}", fontsize=10)
    return ax
