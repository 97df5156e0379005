"""Pictures of captured runs: what every layer sees, epoch by epoch, with and without BN.

An animation is drawn once and then changed frame by frame, so that the histograms of all frames
stand over the same axes; it comes as a GIF and as a page with a slider. No TensorFlow.
"""

import base64
import dataclasses
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image  # matplotlib brings it

from bn_keras import figures

BINS = 30
ROWS = (("output", "pre-activation"), ("input", "layer's input"))
FUNCTIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.7, 2.5
COLORS = 48  # of the frames' common palette: text and lines keep smooth edges


@dataclasses.dataclass(frozen=True)
class Captured:
    """A run and its frames.

    Attributes:
        result: RunResult.
        frames: dict of arrays, as `LayerRecorder.frames` makes it.
    """

    result: object
    frames: dict

    @property
    def name(self):
        """The run's normalizer, as legends call it."""
        normalizer = self.result.config.normalizer
        return figures.LABELS.get(normalizer, normalizer)

    @property
    def style(self):
        """(color, line style) of the run's normalizer."""
        return figures.STYLES.get(self.result.config.normalizer, (figures.OTHERS[0], "-."))


def captured_runs(store, results):
    """Arm to Captured: the first run of each arm that has frames."""
    found = {}
    for result in results:
        if result.config.capture and result.config.arm_name not in found:
            frames = store.frames(result.config)
            if frames is not None:
                found[result.config.arm_name] = Captured(result, frames)
    return found


def layer_histograms(upper, lower, title):
    """Frames of an animation: histograms at every layer of two nets, one above the other.

    How to read it: a column is a layer, a frame an epoch. A healthy layer's histogram is broad and
    stays where it is. One narrow spike in every column to the right says that the signal vanishes;
    two spikes at ±1 that tanh is saturated; one spike at 0 in a relu layer's input that the units
    in front of it are dead. The axes of a panel are the same in all frames; its highest bin always
    has full height, and the outermost bins take in what lies further out (the outermost .5 % of all
    frames).

    Args:
        upper, lower: Captured, with frames of the same steps and layers.
        title: the first line.

    Returns:
        list of PIL images, as many as there are frames in both.
    """
    figure = Figure(figsize=(14, 7.4), dpi=90)
    canvas = FigureCanvasAgg(figure)
    layers = list(upper.frames["layers"])
    axes = figure.subplots(4, len(layers))
    figure.subplots_adjust(0.11, 0.105, 0.992, 0.835, wspace=0.12, hspace=0.62)
    panels = []
    for row, (net, (end, what)) in enumerate((net, of) for net in (upper, lower) for of in ROWS):
        for column, layer in enumerate(layers):
            ax, values = axes[row, column], net.frames[f"{layer}/{end}"]
            edges = _edges(values)
            bars = ax.stairs(
                np.zeros(BINS), edges, fill=True, facecolor=net.style[0], edgecolor="black",
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
        figure.text(0.016, middle, net.name, fontsize=12, weight="bold", rotation=90, va="center",
                    ha="center")
    examples = len(upper.frames["x"])
    figure.text(
        0.5, 0.018,
        f"{examples} test points × the layer's units, seed {upper.result.config.seed}, one run of "
        "each net. Pre-activation: weights × input + bias, in front of any normalization. "
        "Highest bin: full height.",
        ha="center", fontsize=9,
    )
    figure.text(0.5, 0.955, title, ha="center", fontsize=12)
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


def gif(images):
    """An animated GIF of PIL images, as bytes; it repeats, and waits at the last one."""
    durations = [FRAME_SECONDS] * (len(images) - 1) + [LAST_FRAME_SECONDS]
    content = io.BytesIO()
    images[0].save(
        content, "GIF", save_all=True, append_images=images[1:], loop=0,
        duration=[int(1000 * seconds) for seconds in durations],
    )
    return content.getvalue()


def page(images, title):
    """A page with the images, a button to play and a slider; it needs no other file."""
    return PAGE.replace("TITLE", title).replace("LAST", str(len(images) - 1)).replace(
        "PAUSE", str(int(1000 * FRAME_SECONDS))
    ).replace("IMAGES", ",\n".join(f'"{_data_url(image)}"' for image in images))


def overview(results, title, captured, pairs):
    """What captured regressions learned, how fast, and where their activations started.

    How to read it: a row is an activation function. Left, the points and what the nets of one seed
    make of them: a flat line has learned no more than the mean. Middle, the error of all seeds: a
    tenfold lower line is an error about three times as small. Right, the activation function, and
    below it where the pre-activations of the net without BN lie at the start: on tanh's slope and
    not on its flat ends; for relu, left of the bend, where its output and its slope are 0.

    Args:
        results: list of RunResult.
        title: of the picture.
        captured: arm to Captured; the lower arm of each pair is the one whose start is shown.
        pairs: name to (upper arm, lower arm), as a study's animations.

    Returns:
        The picture as the bytes of a PNG.
    """
    figure = Figure(figsize=(14, 4.6 * len(pairs)), layout="constrained")
    rows = figure.subplots(len(pairs), 3, squeeze=False)
    for (name, arms), (left, middle, right) in zip(pairs.items(), rows):
        nets = [captured[arm] for arm in arms]
        fits(nets, left)
        left.set_title(f"{name}: data and fit, one seed of each net", fontsize=10)
        scale = nets[0].frames["epochs"][-1] / nets[0].frames["steps"][-1]
        errors(results, nets, scale, middle)
        middle.set_title(f"{name}: error; thin: one seed, bold: geometric mean", fontsize=10)
        starts(nets[-1], right)
        right.set_title(f"{name} at the start ({nets[-1].name})", fontsize=10)
    return figures.png(figure, title, dpi=90)


def fits(nets, ax):
    """Draws the examples and each net's outputs after the last frame."""
    frames = nets[0].frames
    ax.scatter(frames["x"], frames["y"], s=9, facecolor="none", edgecolor="black", linewidth=0.5,
               label=f"{len(frames['y'])} test points")
    for net in nets:
        color, line = net.style
        ax.plot(net.frames["grid"], net.frames["fitted"][-1], color=color, linestyle=line,
                linewidth=2.6, label=f"{net.name}, seed {net.result.config.seed}")
    ax.set(xlabel="x", ylabel="y")
    ax.legend(fontsize=8)
    return ax


def errors(results, nets, epochs_per_step, ax):
    """Draws the test error of all seeds of the nets' arms over epochs."""
    for net in nets:
        color, line = net.style
        runs = figures.by_arm(results)[net.result.config.arm_name]
        points = [np.array(run.curves["loss/test"], float) for run in runs]
        for steps in points:
            ax.plot(steps[:, 0] * epochs_per_step, steps[:, 1], color=color, linestyle=line,
                    linewidth=0.8, alpha=0.6)
        length = min(len(steps) for steps in points)
        mean = np.exp(np.mean([np.log(steps[:length, 1]) for steps in points], axis=0))
        ax.plot(points[0][:length, 0] * epochs_per_step, mean, color=color, linestyle=line,
                linewidth=2.6, label=f"{net.name}, {len(runs)} seed{'s' * (len(runs) > 1)}")
    ax.set_yscale("log")
    ax.set(xlabel="epochs", ylabel="test mean squared error (population statistics)")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)
    return ax


def starts(net, ax):
    """Draws the activation function over where the first frame's pre-activations lie."""
    activation = net.result.config.activation
    x = np.linspace(-2.5, 2.5, 200)
    ax.plot(x, FUNCTIONS[activation](x), color="black", linewidth=2)
    ax.axvline(0, color="black", linewidth=0.6, linestyle=":")
    hidden = list(net.frames["layers"])[:-1]
    for number, layer in enumerate(hidden, start=1):
        values = net.frames[f"{layer}/output"][0]
        height = -1.3 - 0.3 * number
        low, high = values.min(), values.max()
        color = net.style[0]
        ax.plot([low, high], [height, height], color=color, linewidth=4, solid_capstyle="butt")
        ax.plot(np.median(values), height, color="black", marker="|", markersize=7)
        std = values.std(0, dtype=np.float64).mean()  # of equal float32 it would not be 0
        ax.text(2.45, height, f"layer {number}: std {std:.1g}", fontsize=8, ha="right", va="center")
    ax.text(-2.45, -1.32, "pre-activations, lowest to highest (|: median)", fontsize=8,
            va="center")
    ax.set(xlim=(-2.5, 2.5), ylim=(-1.5 - 0.3 * len(hidden), 2.5), yticks=[-1, 0, 1, 2],
           xlabel="pre-activation", ylabel=f"{activation} of it")
    ax.yaxis.set_label_coords(-0.07, 0.7)
    return ax


def _edges(values):
    """Edges of bins that suit all frames of a panel; around one value alone, a width of 1."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.linspace(-0.5, 0.5, BINS + 1)
    low, high = np.percentile(known, (0.5, 99.5))
    if high - low < 0.01:  # its labels could not tell the ends apart
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _heights(values, edges):
    """Counts in units of the highest one; NaN counts nowhere, as after a divergence."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(1, counts.max())


def _label_ends(ax, edges):
    # Labels in the middle of a narrow panel would run into each other.
    ends = [edges[0], edges[-1]]
    labels = [f"{end:.0f}" if abs(end) >= 10 else f"{end:.2g}" for end in ends]
    ax.set_xticks(ends, labels, fontsize=7)
    for label, side in zip(ax.get_xticklabels(), ("left", "right")):
        label.set_horizontalalignment(side)
    ax.tick_params(length=2, pad=2)


def _heading(upper, lower, frame):
    epoch = upper.frames["epochs"][frame]
    when = "before training" if epoch == 0 else f"after epoch {epoch:g}"
    told = []
    for net in (upper, lower):
        curve = dict(map(tuple, net.result.curves["loss/test"]))
        loss = curve.get(int(net.frames["steps"][frame]))
        told.append(f"{net.name} {'diverged' if loss is None else format(loss, ',.1f')}")
    return f"{when}      test mean squared error: {', '.join(told)}"


def _with_common_palette(images):
    palette = images[-1].quantize(COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _data_url(image):
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>TITLE</title>
<style>
  body { margin: 1em; font: 16px sans-serif; text-align: center; }
  img { max-width: 100%; }
  input { width: 60%; vertical-align: middle; }
</style>
<p><button id="play">Play</button>
  <input id="frame" type="range" min="0" max="LAST" value="0" aria-label="epoch">
  <output id="number">0</output> of LAST</p>
<img id="image" alt="TITLE">
<script>
const images = [
IMAGES
];
const slider = document.getElementById("frame"), button = document.getElementById("play");
let timer = null;
function show() {
  document.getElementById("image").src = images[slider.value];
  document.getElementById("number").value = slider.value;
}
function pause() {
  clearInterval(timer);
  timer = null;
  button.textContent = "Play";
}
slider.oninput = () => { pause(); show(); };
button.onclick = () => {
  if (timer !== null) { pause(); return; }
  button.textContent = "Pause";
  timer = setInterval(() => {
    slider.value = (Number(slider.value) + 1) % images.length;
    show();
  }, PAUSE);
};
show();
</script>
</html>
"""
