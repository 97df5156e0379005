"""Pictures of stored results. Every function draws on the axes it is given and returns them."""

import io

import numpy as np
from matplotlib.figure import Figure

from bn_keras.studies import Row
from bn_keras.studies import pitfalls as pitfall_study
from bn_keras.studies.rates import WORKABLE, largest_workable_rate, net_of

# Okabe & Ito's colours, told apart by the colour-blind; the line styles survive grey print.
STYLES = {
    "none": ("#7f7f7f", "--"),
    "batch": ("#0072b2", "-"),
    "keras_batch": ("#56b4e9", "-."),
    "layer": ("#e69f00", "-"),
    "group": ("#009e73", "-"),
}
OTHERS = ("#d55e00", "#cc79a7", "#000000", "#e69f00", "#009e73", "#56b4e9")
# Further arms with a normalizer keep to its family of colors, and differ in their lines.
FAMILIES = {
    "none": (("#000000", ":"), ("#b0b0b0", "-."), ("#555555", (0, (6, 2))), ("#7f7f7f", ":")),
    "batch": (("#56b4e9", ":"), ("#003f66", "-."), ("#56b4e9", "-"), ("#0072b2", (0, (6, 2)))),
}
LABELS = {"none": "no normalization", "batch": "batch normalization"}


def curves(results, name, ax, unit=1):
    """Draws one curve of every run: seeds thin, their mean bold.

    How to read it: a thin line is one seed; where the bold line of an arm lies above another's
    at every step, that arm was better throughout on average over the seeds.

    Args:
        results: list of RunResult.
        name: the curve, such as `accuracy/validation`.
        ax: matplotlib axes.
        unit: training steps in one unit of the horizontal axis.
    """
    looks = styles(results)
    for arm, runs in by_arm(results).items():
        color, line = looks[arm]
        points = [np.array(run.curves.get(name, []), float).reshape(-1, 2) / (unit, 1)
                  for run in runs]
        for steps in points:
            ax.plot(*steps.T, color=color, linestyle=line, linewidth=0.8, alpha=0.5)
        # A diverged run's curve ends early: the mean goes as far as every seed does.
        length = min(len(steps) for steps in points)
        mean = np.mean([steps[:length, 1] for steps in points], axis=0)
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        ax.plot(
            points[0][:length, 0], mean, color=color, linestyle=line, linewidth=2.6,
            label=f"{LABELS.get(arm, arm)}, mean of {seeds}",
        )
    ax.grid(alpha=0.3)
    ax.set_xlabel("training steps" if unit == 1 else f"units of {unit} training steps")
    return ax


def accuracy_over_steps(results, title, unit=1):
    """The comparison as one picture: accuracy in training (left) and validation (right).

    How to read it: left, each point is one training batch, normalized with its own statistics;
    right, a part of the validation set, normalized with the population statistics. An arm that is
    high on the left and low on the right has population statistics that lag behind. Where runs have
    a second curve, evaluated with a bug, it stands further to the right. Each panel has a scale of
    its own, from 0 unless all of it lies above .5.

    Returns:
        The picture as the bytes of a PNG.
    """
    shown = {
        "accuracy/train": "training batches (batch statistics)",
        "accuracy/validation": "validation images (population statistics)",
    }
    for bug in sorted({run.config.pitfall_curve for run in results} - {None}):
        words = bug.replace("_", " ")
        shown[f"accuracy/validation_{bug}"] = f"validation images, evaluated {words}"
    figure = Figure(figsize=(5 * len(shown), 4.4), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True)
    for ax, (name, heading) in zip(axes, shown.items()):
        curves(results, name, ax, unit)
        ax.set_title(heading, fontsize=10)
        _limit_accuracy(ax)
    axes[0].set_ylabel("accuracy")
    axes[0].set_xlim(left=0)
    axes[1].legend(loc="center right", fontsize=9)
    return png(figure, f"{title}\nthin: one seed, bold: mean")


def _limit_accuracy(ax):
    """From 0 to 1, or from less far down where all is above one half and differs by little."""
    lowest = min((value for line in ax.lines for value in line.get_ydata()), default=0)
    bottom = np.floor(10 * lowest) / 10 if lowest > 0.5 else 0
    ax.set_ylim(bottom, 1 + 0.02 * (1 - bottom))


def accuracy_over_tens_of_steps(results, title):
    """`accuracy_over_steps` in units of 10 iterations, as tutorials of TensorFlow 1 draw it."""
    return accuracy_over_steps(results, title, unit=10)


def styles(results, name=lambda config: config.arm_name):
    """(color, line style) of every arm.

    Args:
        results: list of RunResult.
        name: of a configuration, what is drawn as one line.
    """
    found, used = {}, {}
    for run in results:
        arm, normalizer = name(run.config), run.config.normalizer
        if arm in found:
            continue
        if arm in STYLES:
            found[arm] = STYLES[arm]
            continue
        family = FAMILIES.get(normalizer, tuple((color, ":") for color in OTHERS))
        number = used[normalizer] = used.get(normalizer, -1) + 1
        found[arm] = family[number % len(family)]
    return found


def by_arm(results):
    """Results by arm, in the order of first appearance."""
    arms = {}
    for result in results:
        arms.setdefault(result.config.arm_name, []).append(result)
    return arms


def loss_over_steps(results, title):
    """Validation loss of every arm, on a logarithmic scale.

    How to read it: a flat line is a net that does not learn; each tenfold lower line is an error
    about three times as small.

    Returns:
        The picture as the bytes of a PNG.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    ax = curves(results, "loss/validation", figure.subplots())
    ax.set_yscale("log")
    ax.set_ylabel("validation loss (population statistics)")
    ax.legend(fontsize=8)
    return png(figure, f"{title}\nthin: one seed, bold: mean")


def accuracy_over_rates(results, title):
    """Final accuracy of every net over the learning rate, the largest workable one marked.

    How to read it: a net works at a rate where its line is above the dotted one; the number is the
    largest rate at which its median does so before it first fails.

    Returns:
        The picture as the bytes of a PNG.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    ax = figure.subplots()
    nets = {}
    for run in results:
        net = net_of(run.config)
        rates = nets.setdefault(net, {}).setdefault(run.config.seed, {})
        rates[run.config.learning_rate] = run.metrics["test_accuracy"]
    looks = styles(results, net_of)
    for number, (net, seeds) in enumerate(nets.items()):
        color, line = looks[net]
        rates = sorted({rate for found in seeds.values() for rate in found})
        for found in seeds.values():
            ax.plot(list(found), list(found.values()), color=color, linestyle=line, linewidth=0.8,
                    alpha=0.6)
        known = [[found[rate] for found in seeds.values() if rate in found] for rate in rates]
        median = [float(np.median(values)) for values in known]
        ax.plot(rates, median, color=color, linestyle=line, linewidth=2.6, marker="o",
                label=f"{LABELS.get(net, net)}, median of {len(seeds)}")
        rate = largest_workable_rate(dict(zip(rates, median)))
        if rate is not None:
            ax.text(rate, 1.01 + 0.055 * number, f"{rate:g}", color=color, ha="center",
                    weight="bold")
    ax.axhline(WORKABLE, color="black", linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate (logarithmic)")
    ax.set_ylabel("test accuracy after training")
    ax.set_ylim(0, 1.04 + 0.055 * len(nets))  # room for the numbers
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(fontsize=8)
    words = f"numbers: largest workable rate (dotted: {WORKABLE:.0%}); thin: one seed"
    return png(figure, f"{title}\n{words}")


def accuracy_and_percentiles(results, title):
    """Figure 1 of Ioffe & Szegedy (2015): accuracy, and what one unit sees, over steps.

    How to read it: on the left, the line that rises earlier trains faster. In the middle and on the
    right, the three lines are the 15th, 50th and 85th percentile of the input of one sigmoid of the
    last hidden layer over the images of the curve: the steadier they are, the less that unit has to
    follow.

    Returns:
        The picture as the bytes of a PNG.
    """
    arms = {arm: runs for arm, runs in by_arm(results).items() if arm in ("none", "batch")}
    figure = Figure(figsize=(4.6 * (1 + len(arms)), 4.4), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(arms), squeeze=False)[0]
    curves(results, "accuracy/validation", left)
    left.set_xscale("log")
    left.set_xlabel("training steps (logarithmic)")
    left.set_ylabel("validation accuracy")
    left.legend(fontsize=8)
    for ax, (arm, runs) in zip(others, arms.items()):
        color, _ = STYLES[arm]
        for percentile, line in ((15, ":"), (50, "-"), (85, "--")):
            points = np.array(runs[0].curves.get(f"unit/p{percentile}", []), float)
            ax.plot(*points.reshape(-1, 2).T, color=color, linestyle=line,
                    label=f"{percentile}th percentile")
        ax.set_xlabel("training steps")
        ax.set_ylabel("input of one sigmoid, last hidden layer")
        ax.set_title(f"{LABELS.get(arm, arm)}, seed {runs[0].config.seed}", fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    limits = [ax.get_ylim() for ax in others]
    for ax in others:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return png(figure, f"{title}\nleft thin: one seed, bold: mean")


def pitfalls(results, title):
    """Accuracy of each net with each bug, one marker for every size of the evaluation's batches.

    How to read it: markers on top of each other belong to an evaluation that gives an image the
    same answer in any company; where they lie apart, the answer depends on the batch. Compare with
    the topmost row, which has no bug.

    Returns:
        The picture as the bytes of a PNG.
    """
    rows = [Row(run.config.arm_name, run.config.seed, run.metrics) for run in results]
    nets = {}
    for pitfall, arm, found in pitfall_study.lines(rows):
        net, _, variant = arm.partition(", ")
        label = f"{pitfall.name} ({variant})" if variant == "no BN" else pitfall.name
        nets.setdefault(net, []).append((label, found))
    markers = (("s", "#000000"), ("^", "#0072b2"), ("o", "#d55e00"), ("x", "#cc79a7"))
    figure = Figure(figsize=(10, 1.6 + 0.34 * sum(map(len, nets.values()))), layout="constrained")
    axes = figure.subplots(
        len(nets), 1, sharex=True, squeeze=False, height_ratios=list(map(len, nets.values()))
    )[:, 0]
    for ax, (net, bugs) in zip(axes, nets.items()):
        for (marker, color), batch in zip(markers, pitfall_study.BATCHES):
            points = [(value, y) for y, (_, found) in enumerate(bugs) for value in found[batch]]
            shown = "one batch" if batch == "whole" else f"batches of {batch}"
            open_face = {} if marker == "x" else {"markerfacecolor": "none"}
            ax.plot(*np.array(points).T, marker, color=color, markersize=8, label=shown,
                    markeredgewidth=1.6, clip_on=False, **open_face)
        ax.set_yticks(range(len(bugs)), [label for label, _ in bugs])
        ax.set_ylim(len(bugs) - 0.5, -0.5)
        ax.set_title(net, fontsize=10)
        ax.grid(alpha=0.3)
    axes[-1].set_xlim(0, 1)
    axes[-1].set_xlabel("accuracy on test images")
    axes[0].legend(title="evaluated in", fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    images = {int(row.metrics["pitfall/images"]) for row in rows}
    seeds = len({row.seed for row in rows})
    return png(figure, f"{title}\n{max(images)} test images; a marker a seed, {seeds} in all")


def png(figure, title, dpi=110):
    """A figure under its title, as the bytes of a PNG."""
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return picture.getvalue()
