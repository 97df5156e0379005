"""The bugs that tutorials make with batch normalization, each on a net that was trained without it.

    python train.py --study=pitfalls

"As written" and "correct" are two evaluations of the same weights: the bugs of evaluation
(`bn_keras.diagnostics.pitfalls`) are shown on one trained convolutional net and one dense net. The
bugs of training are arms of their own. The table says what each looks like, costs, and takes.
"""

import dataclasses
import statistics
from typing import Mapping, Tuple

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test

BLOG = "a TensorFlow 1 blog on an MNIST CNN with dropout"
THREAD = "a Q&A thread on BN and notMNIST"
BATCHES = ("whole", "16", "2", "1")  # how many images are evaluated together
MEASURED = (*BATCHES, "loss")
NETS = ("CNN", "MLP")


@dataclasses.dataclass(frozen=True)
class Pitfall:
    """One bug in words.

    Attributes:
        name: what it is called in the table and the picture.
        see: what one sees.
        notice: the test that tells it.
        remedy: what to do.
        evaluation: name of the evaluation, one of `diagnostics.pitfalls.EVALUATIONS`.
        arms: the arms that show it, their names beginning with the net's.
        before: the figures found before for the first of these, by name in MEASURED.
    """

    name: str
    see: str
    notice: str
    remedy: str
    evaluation: str = "correct"
    arms: Tuple[str, ...] = NETS
    before: Mapping[str, str] = dataclasses.field(default_factory=dict)


PITFALLS = (
    Pitfall(
        "correct inference",
        "the same accuracy however many images are predicted together",
        "predict some images singly and together: the logits are equal",
        "none needed",
        before={"whole": ".983–.986", "1": ".98–1", "loss": ".142"},
    ),
    Pitfall(
        "statistics never updated",
        "training goes well, evaluation is poor and erratic",
        "moving mean all 0, moving variance all 1 after training",
        "run the update ops in every step; or recompute the statistics from training data",
        "never_updated",
    ),
    Pitfall(
        "never updated, convolution only",
        "training goes well, evaluation is at chance",
        "that layer's moving mean all 0, its moving variance all 1",
        "run every layer's update ops; or recompute the statistics from training data",
        "conv_never_updated",
        arms=("CNN",),
        before={"whole": ".117–.172"},
    ),
    Pitfall(
        "batch statistics in all BN layers",
        "fine on large batches; worse the smaller they are",
        "an image's logits change with the others in its batch",
        "training=False in evaluation",
        "batch_statistics",
    ),
    Pitfall(
        "batch statistics in dense layers",
        "fine on large batches; one answer for every single image",
        "predict two images singly: equal logits",
        "hand the flag to every layer, or set it once for the model",
        "dense_batch_statistics",
        arms=("CNN",),
        before={"whole": ".98", "16": ".895", "2": ".29–.33", "1": "constant"},
    ),
    Pitfall(
        "as written: two bugs at once",
        "the whole test set looks right; a single image never does",
        "the convolution's moving statistics at 0 and 1; accuracy changes with the batch size",
        "update all statistics and hand on the flag: either alone leaves the other bug",
        "as_written",
        arms=("CNN",),
        before={"whole": ".986–.987", "1": ".14", "loss": ".141"},
    ),
    Pitfall(
        "dropout left active",
        "some tenths of a percent off, and another figure in every evaluation",
        "evaluate twice: the logits differ",
        "training=False for the whole model, not for BN alone",
        "dropout_active",
        arms=("CNN",),
        before={"whole": "−.002–.008"},
    ),
    Pitfall(
        "evaluation graph without BN",
        "training goes well, evaluation is poor",
        "the logits of one image differ from those of the training graph in inference mode",
        "build the model once, and evaluate that",
        "without_bn",
    ),
    Pitfall(
        "momentum .999, short run",
        "poor in evaluation, better with every further epoch of the same training",
        "good with batch statistics on a large batch, poor with moving statistics",
        "momentum .9, debias=True, or recompute the statistics",
        arms=("MLP, momentum .999",),
    ),
    Pitfall(
        "one batch of rows over and over",
        "training loss near 0, test accuracy far lower",
        "count the different rows that were drawn in an epoch",
        "draw from all rows: a new permutation in every epoch",
        arms=("MLP, one batch of rows",),
    ),
    Pitfall(
        "never in training mode",
        "a net without BN: slower, or diverged at a rate that only BN allows",
        "moving mean all 0, moving variance all 1 after training",
        "training=True in the training step",
        arms=("MLP, never in training mode",),
    ),
    Pitfall(
        "losses compared across arms",
        "normalized logits: a far higher sigmoid loss at equal accuracy",
        "the logits with BN have a standard deviation of about gamma",
        "compare accuracies, or leave the logits without BN",
        arms=("CNN, no BN", "CNN"),
        before={"loss": ".0114"},
    ),
)


def lines(rows):
    """What was measured of each pitfall.

    Args:
        rows: list of Row.

    Yields:
        `(pitfall, arm, found)` for every arm that shows it; found has, for each of MEASURED, a
        list with a number a seed.
    """
    for pitfall in PITFALLS:
        for arm in pitfall.arms:
            metrics = [row.metrics for row in rows if row.arm == arm]
            found = {}
            for what in MEASURED:
                values = [of.get(f"pitfall/{pitfall.evaluation}/{what}") for of in metrics]
                found[what] = [value for value in values if value is not None]
            if any(found.values()):
                yield pitfall, arm, found


def tables(rows):
    """The table of effects, and that of what to see, how to notice it and the remedy.

    The figures are medians over seeds; a line `before` has those found before.
    """
    found = {}
    for pitfall, arm, values in lines(rows):
        figures = found.setdefault(pitfall.name, (pitfall, []))[1]
        figures.append((_label(arm), *(_median(values[what]) for what in MEASURED)))
        if pitfall.before and arm == pitfall.arms[0]:
            figures.append(("before", *(pitfall.before.get(what, "") for what in MEASURED)))
    effects = [
        (pitfall.name, *map("\n".join, zip(*figures))) for pitfall, figures in found.values()
    ]
    words = [
        (pitfall.name, pitfall.see, pitfall.notice, pitfall.remedy) for pitfall, _ in found.values()
    ]
    return [
        (("pitfall", "net", "whole", "by 16", "by 2", "by 1", "loss"), effects),
        (("pitfall", "what you would see", "how to notice", "remedy"), words),
    ]


def _label(arm):
    return arm if arm == "CNN, no BN" else arm.partition(",")[0]


def _median(values):
    if not values:
        return "–"
    value = statistics.median(values)
    return f"{value:.3f}".removeprefix("0") if value < 10 else f"{value:.3g}"


@STUDIES.register("pitfalls")
def pitfalls():
    """The pitfalls of studies 1, 2, 4 and 5, side by side."""
    cnn = {"model": "mnist_cnn", "optimizer": "adam", "learning_rate": 0.002, "pitfalls": "all"}
    mlp = {"model": "not_mnist_mlp", "optimizer": "sgd", "learning_rate": 0.5,
           "pixels": "centered", "pitfalls": "all"}
    return Study(
        question="What do the usual bugs with BN look like, and what do they cost?",
        source="five tutorials",
        duration="5 min",
        expected="correct .98 in batches of any size; as written .98 on the whole batch, .1 singly",
        base={
            "batch_size": 64, "steps": 800, "momentum": 0.9, "log_interval": 50,
            "eval_interval": 150, "curve_size": 500, "validation_size": 1000, "test_size": 2000,
        },
        arms={
            "CNN": cnn,
            "CNN, no BN": {**cnn, "normalizer": "none"},
            "MLP": mlp,
            "MLP, momentum .999": {**mlp, "momentum": 0.999, "pitfalls": "correct"},
            "MLP, one batch of rows": {**mlp, "drawn_batches": 1, "pitfalls": "correct"},
            "MLP, never in training mode": {
                **mlp, "normalizer": "frozen_statistics", "pitfalls": "correct",
            },
        },
        metrics=(
            "test_loss", "test_accuracy", "one_at_a_time_accuracy",
            "validation_accuracy_batch_statistics",
        ),
        claims=(
            Claim(
                "evaluated correctly, the CNN is right about single images",
                "this toolkit",
                effect=(Test("pitfall/correct/1", "CNN", "at least", 0.9),),
            ),
            Claim(
                "as written, the same weights say the same of every single image",
                BLOG,
                effect=(Test("pitfall/as_written/spread", "CNN", "at most", 1e-4),),
            ),
            Claim(
                "batch statistics in the dense layers hide that the convolution's were never "
                "updated",
                BLOG,
                effect=(
                    Test("pitfall/conv_never_updated/whole", "CNN", "at most", 0.5),
                    Test("pitfall/as_written/whole", "CNN", "at least", 0.9),
                ),
            ),
            Claim(
                "normalized logits have a sigmoid loss several times as high at equal accuracy",
                BLOG,
                effect=(
                    Test("test_loss", "CNN", "at least", "CNN, no BN", factor=3.0),
                    Test("test_accuracy", "CNN", "at least", "CNN, no BN", margin=-0.02),
                ),
            ),
            Claim(
                "an evaluation graph without BN ruins a net that was trained with it",
                THREAD,
                effect=(Test("pitfall/without_bn/whole", "MLP", "at most", 0.6),),
            ),
            Claim(
                "a momentum of .999 is too slow for a short run",
                THREAD,
                effect=(
                    Test("test_accuracy", "MLP, momentum .999", "at most", "MLP", margin=-0.05),
                ),
            ),
            Claim(
                "a net that saw one batch of rows only is far worse",
                THREAD,
                effect=(
                    Test("test_accuracy", "MLP, one batch of rows", "at most", "MLP", margin=-0.1),
                ),
            ),
        ),
        reported={
            ("CNN", "test_loss"): ".142", ("CNN", "test_accuracy"): ".983 to .986",
            ("CNN", "one_at_a_time_accuracy"): ".98 to 1",
            ("CNN, no BN", "test_loss"): ".0114",
            ("CNN, no BN", "test_accuracy"): ".981 to .984",
            ("CNN, no BN", "one_at_a_time_accuracy"): "1",
        },
        picture="pitfalls",
        quick={"steps": 40, "log_interval": 20, "eval_interval": 20, "train_size": 10_000,
               "validation_size": 300, "test_size": 96},
        seeds=3,
        quick_seeds=1,
        tables=tables,
    )
