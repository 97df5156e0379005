"""Pictures of stored results. Every function draws on the axes it is given and returns them."""

import io

import numpy as np
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by the colour-blind; the line styles survive grey print.
STYLES = {
    "none": ("#7f7f7f", "--"),
    "batch": ("#0072b2", "-"),
    "keras_batch": ("#56b4e9", "-."),
    "layer": ("#e69f00", "-"),
    "group": ("#009e73", "-"),
}
OTHERS = ("#d55e00", "#cc79a7", "#000000")
LABELS = {"none": "no normalization", "batch": "batch normalization"}


def curves(results, name, ax):
    """Draws one curve of every run: seeds thin, their mean bold.

    How to read it: a thin line is one seed; where the bold line of an arm lies above another's
    at every step, that arm was better throughout on average over the seeds.

    Args:
        results: list of RunResult.
        name: the curve, such as `accuracy/validation`.
        ax: matplotlib axes.
    """
    for number, (arm, runs) in enumerate(by_arm(results).items()):
        color, line = STYLES.get(arm, (OTHERS[number % len(OTHERS)], ":"))
        points = [np.array(run.curves.get(name, []), float).reshape(-1, 2) for run in runs]
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
    ax.set_xlabel("training steps")
    return ax


def accuracy_over_steps(results, title):
    """The comparison as one picture: accuracy in training (left) and validation (right).

    How to read it: left, each point is one training batch, normalized with its own statistics;
    right, a part of the validation set, normalized with the population statistics. An arm that is
    high on the left and low on the right has population statistics that lag behind.

    Returns:
        The picture as the bytes of a PNG.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    curves(results, "accuracy/train", left)
    curves(results, "accuracy/validation", right)
    left.set_title("training batches (batch statistics)", fontsize=10)
    right.set_title("validation images (population statistics)", fontsize=10)
    left.set_ylabel("accuracy")
    left.set_ylim(0, 1.02)
    left.set_xlim(left=0)
    right.legend(loc="center right", fontsize=9)
    figure.suptitle(f"{title}\nthin: one seed, bold: mean", fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def by_arm(results):
    """Results by normalizer, in the order of first appearance."""
    arms = {}
    for result in results:
        arms.setdefault(result.config.normalizer, []).append(result)
    return arms
