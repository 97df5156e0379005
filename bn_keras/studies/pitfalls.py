"""The bugs that tutorials make with batch normalization, each on a net that was trained without it.

    python train.py --study=pitfalls

"As written" and "correct" are two evaluations of the same weights: the bugs of evaluation
(`bn_keras.diagnostics.pitfalls`) are shown on one trained convolutional net and one dense net. The
bugs of training are arms of their own. One table has what each bug costs, another how it looks, how
to notice it and the remedy.

Takes 8 min on 2 cores. Evaluated correctly the CNN is at .98 in batches of any size; as the blog
writes it, at .98 on the whole batch and at .1 on single images.
"""

import dataclasses
from typing import Mapping, Tuple

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Study

BLOG = "a TensorFlow 1 blog on an MNIST CNN with BN and dropout (flag --is_bn)"
THREAD = "a question-and-answer thread on BN in TensorFlow, training on notMNIST"
NETS = ("CNN", "MLP")
MEASURED = ("one_at_a_time", "batch_statistics")


@dataclasses.dataclass(frozen=True)
class Pitfall:
    """One bug in words.

    Attributes:
        name: its name in the table and the picture.
        see: its symptoms.
        notice: the test that finds it.
        remedy: what to do.
        evaluation: name of the evaluation, one of `diagnostics.pitfalls.EVALUATIONS`.
        arms: the arms that show it, their names beginning with the net's.
        reported: figures found elsewhere for the first of these, by the last part of the metric:
            how many images were evaluated together ("whole", "16", "2", "1"), or "loss".
    """

    name: str
    see: str
    notice: str
    remedy: str
    evaluation: str = "correct"
    arms: Tuple[str, ...] = NETS
    reported: Mapping[str, str] = dataclasses.field(default_factory=dict)


PITFALLS = (
    Pitfall(
        "correct inference",
        "the same accuracy however many images are predicted together",
        "predict some images singly and together: the logits are equal",
        "none needed",
        reported={"whole": ".983–.986", "1": ".98–1", "loss": ".142"},
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
        reported={"whole": ".117–.172"},
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
        "fine on large batches; the same class for every image fed alone",
        "predict two images singly: equal logits",
        "pass the training flag to every layer, or set it once for the model",
        "dense_batch_statistics",
        arms=("CNN",),
        reported={"whole": ".98", "16": ".895", "2": ".29–.33", "1": "constant"},
    ),
    Pitfall(
        "as written: two bugs at once",
        "the whole test set looks right; images fed alone all get the same class",
        "the convolution's moving statistics at 0 and 1; accuracy changes with the batch size",
        "update all statistics and pass on the flag: either alone leaves the other bug",
        "as_written",
        arms=("CNN",),
        reported={"whole": ".986–.987", "1": ".14", "loss": ".141"},
    ),
    Pitfall(
        "dropout left active",
        "some tenths of a percent off, and another figure in every evaluation",
        "evaluate twice: the logits differ",
        "training=False for the whole model, not for BN alone",
        "dropout_active",
        arms=("CNN",),
        reported={"whole": "−.002–.008"},
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
        reported={"loss": ".0114"},
    ),
)


@STUDIES.register("pitfalls")
def pitfalls() -> Study:
    """The pitfalls of five tutorials, side by side."""
    correct = {"measure": (*MEASURED, "pitfalls:correct")}
    cnn = {"model": "mnist_cnn", "optimizer": "adam", "learning_rate": 0.002}
    mlp = {"model": "not_mnist_mlp", "optimizer": "sgd", "learning_rate": 0.5,
           "pixels": "centered"}
    return Study(
        question="What do the usual bugs with BN look like, and what do they cost?",
        source="five tutorials",
        duration="8 min",
        expected="correct .98 in batches of any size; as written .98 on the whole batch, .1 singly",
        base={
            "batch_size": 64, "steps": 800, "momentum": 0.9, "log_interval": 50,
            "eval_interval": 150, "curve_size": 500, "validation_size": 1000, "test_size": 2000,
            "measure": (*MEASURED, "pitfalls"),
        },
        arms={
            "CNN": cnn,
            "CNN, no BN": {**cnn, "normalizer": "none"},
            "MLP": mlp,
            "MLP, momentum .999": {**mlp, **correct, "momentum": 0.999},
            "MLP, one batch of rows": {**mlp, **correct, "train_size": 64},  # the batch size
            "MLP, never in training mode": {
                **mlp, **correct, "normalizer": "frozen_statistics",
            },
        },
        columns=(
            "test_loss", "test_accuracy", "one_at_a_time_accuracy",
            "validation_accuracy_batch_statistics",
        ),
        derived={
            "lost_without_bn":
                "metric('pitfall/correct/whole') - metric('pitfall/without_bn/whole')",
        },
        claims=(
            Claim(
                "evaluated correctly, the CNN is right about single images",
                "this toolkit",
                expected="holds",
                effect=(Comparison("pitfall/correct/1", "CNN", "at least", 0.9),),
            ),
            Claim(
                "as written, the same weights predict the same for every image fed alone",
                BLOG,
                expected="holds",
                effect=(Comparison("pitfall/as_written/spread", "CNN", "at most", 1e-4),),
            ),
            Claim(
                "batch statistics in the dense layers hide that the convolution's were never "
                "updated",
                BLOG,
                expected="holds",
                effect=(
                    Comparison("pitfall/conv_never_updated/whole", "CNN", "at most", 0.5),
                    Comparison("pitfall/as_written/whole", "CNN", "at least", 0.9),
                ),
            ),
            Claim(
                "normalized logits have a sigmoid loss several times as high at equal accuracy",
                BLOG,
                expected="holds",
                effect=(
                    Comparison("test_loss", "CNN", "at least", "CNN, no BN", factor=3.0),
                    Comparison("test_accuracy", "CNN", "at least", "CNN, no BN", margin=-0.02),
                    Comparison("test_accuracy", "CNN", "at most", "CNN, no BN", margin=0.02),
                ),
            ),
            Claim(
                "an evaluation graph without BN costs a net that was trained with it ten points at "
                "least",
                THREAD,
                expected="holds",
                effect=(Comparison("lost_without_bn", "MLP", "at least", 0.1),),
            ),
            Claim(
                "a momentum of .999 is too slow for a short run: it costs five points at least",
                THREAD,
                expected="holds",
                effect=(
                    Comparison("test_accuracy", "MLP, momentum .999", "at most", "MLP",
                               margin=-0.05),
                ),
            ),
            Claim(
                "a net that saw one batch of rows only is ten points worse at least",
                THREAD,
                expected="holds",
                effect=(
                    Comparison("test_accuracy", "MLP, one batch of rows", "at most", "MLP",
                               margin=-0.1),
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
        figures=("pitfalls:CNN", "pitfalls:MLP"),
        tables={"pitfalls": PITFALLS},
        quick={"steps": 40, "log_interval": 20, "eval_interval": 20, "train_size": 10_000,
               "validation_size": 300, "test_size": 96},
    )
