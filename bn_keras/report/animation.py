"""Histograms at every layer of two nets, epoch by epoch: a GIF, and a page with a slider.

An animation is drawn once and then changed frame by frame, so that the histograms of all frames
stand over the same axes.
"""

import base64
import html
import io
import json
import pathlib
import string
from typing import Any, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image  # matplotlib brings it

from bn_keras.report.figures.drawing import finite_points, named, styles
from bn_keras.study import Row
from bn_keras.texts import in_picture, plain

BINS = 30
ROWS = (("output", "pre-activation"), ("input", "layer's input"))
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.7, 2.5
COLORS = 48  # of the frames' common palette: text and lines keep smooth edges
PAGE = pathlib.Path(__file__).with_suffix(".html")


def layer_histograms(upper: Row, lower: Row, title: str) -> list[Image.Image]:
    """Frames of an animation: histograms at every layer of two nets, one above the other.

    How to read it: a column is a layer, a frame an epoch. A healthy layer's histogram is broad and
    stays where it is. One narrow spike in every column to the right says that the signal vanishes;
    two spikes at ±1 that tanh is saturated; one spike at 0 in a relu layer's input that the units
    in front of it are dead. The axes of a panel are the same in all frames; its highest bin always
    has full height, and the outermost bins take in what lies further out (the outermost .5 % of all
    frames).

    Args:
        upper, lower: Rows with frames of the same steps and layers, and the curve `loss/test`.
        title: the first line.

    Returns:
        Images, as many as there are frames in both.
    """
    figure = Figure(figsize=(14, 7.4), dpi=90)
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's own annotations lack its methods
    layers = list(upper.frames["layers"])
    axes = figure.subplots(4, len(layers))
    figure.subplots_adjust(0.11, 0.105, 0.992, 0.835, wspace=0.12, hspace=0.62)
    looks = styles([upper, lower])
    panels = []
    for row, (net, (end, what)) in enumerate((net, of) for net in (upper, lower) for of in ROWS):
        for column, layer in enumerate(layers):
            ax, values = axes[row, column], net.frames[f"{layer}/{end}"]
            edges = _edges(values)
            bars = ax.stairs(
                np.zeros(BINS), edges, fill=True, facecolor=looks[net.arm][0], edgecolor="black",
                linewidth=0.5, animated=True,
            )
            ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.05), yticks=[])
            _label_ends(ax, edges)
            if row == 0:
                ax.set_title(layer.replace("dense", "layer "), fontsize=10, pad=5)
            panels.append((ax, bars, values, edges))
        place = axes[row, 0].get_position()
        figure.text(0.103, place.y0 + place.height / 2, what, fontsize=9, ha="right", va="center")
    for net, row in ((upper, 0), (lower, 2)):
        middle = (axes[row, 0].get_position().y1 + axes[row + 1, 0].get_position().y0) / 2
        figure.text(0.016, middle, named(net.arm), fontsize=12, weight="bold", rotation=90,
                    va="center", ha="center")
    examples = len(upper.frames["x"])
    figure.text(
        0.5, 0.018,
        f"{examples} test points × the layer's units, seed {upper.seed}, one run of each net. "
        "Pre-activation: weights × input + bias, in front of any normalization. "
        "Highest bin: full height.",
        ha="center", fontsize=9,
    )
    figure.text(0.5, 0.955, in_picture(title), ha="center", fontsize=12)
    heading = figure.text(0.5, 0.905, "", ha="center", fontsize=12, animated=True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    images = []
    for frame in range(min(len(upper.frames["steps"]), len(lower.frames["steps"]))):
        canvas.restore_region(background)
        for ax, bars, values, edges in panels:
            bars.set_data(_heights(values[frame], edges))
            ax.draw_artist(bars)
            for spine in ax.spines.values():
                ax.draw_artist(spine)
        heading.set_text(_heading(upper, lower, frame))
        figure.draw_artist(heading)
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return _with_common_palette(images)


def gif(images: Sequence[Image.Image]) -> bytes:
    """An animated GIF, as bytes; it repeats, and waits at the last image."""
    durations = [FRAME_SECONDS] * (len(images) - 1) + [LAST_FRAME_SECONDS]
    content = io.BytesIO()
    images[0].save(
        content, "GIF", save_all=True, append_images=list(images[1:]), loop=0,
        duration=[int(1000 * seconds) for seconds in durations],
    )
    return content.getvalue()


def page(images: Sequence[Image.Image], title: str) -> str:
    """A page with the images, a button to play and a slider; it needs no other file."""
    return string.Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(plain(title)), last=len(images) - 1, pause=int(1000 * FRAME_SECONDS),
        images=json.dumps([_data_url(image) for image in images], indent=0),
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins that suit all frames of a panel; around one value alone, a width of 1."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.linspace(-0.5, 0.5, BINS + 1)
    low, high = np.percentile(known, (0.5, 99.5))
    if high - low < 0.01:  # its labels could not tell the ends apart
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _heights(values: np.ndarray, edges: np.ndarray) -> Any:
    """Counts in units of the highest one; NaN counts nowhere, as after a divergence."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(1, counts.max())


def _label_ends(ax: Axes, edges: np.ndarray) -> None:
    # Labels in the middle of a narrow panel would run into each other.
    ends = [edges[0], edges[-1]]
    labels = [f"{end:.0f}" if abs(end) >= 10 else f"{end:.2g}" for end in ends]
    ax.set_xticks(ends, labels, fontsize=7)
    left, right = ax.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
    ax.tick_params(length=2, pad=2)


def _heading(upper: Row, lower: Row, frame: int) -> str:
    epoch = upper.frames["epochs"][frame]
    when = "before training" if epoch == 0 else f"after epoch {epoch:g}"
    told = []
    for net in (upper, lower):
        losses = dict(finite_points(net.curves.get("loss/test", [])).tolist())
        loss = losses.get(float(net.frames["steps"][frame]))
        told.append(f"{named(net.arm)} {'diverged' if loss is None else format(loss, ',.1f')}")
    return f"{when}      test mean squared error: {', '.join(told)}"


def _with_common_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    palette = images[-1].quantize(COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
