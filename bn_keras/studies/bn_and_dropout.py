"""Does batch normalization take the place of dropout?

    python train.py --study=bn_and_dropout

The MNIST CNN on 2,000 training images, few enough to overfit: with BN or dropout, with both and
with neither. Takes 5 min on 2 cores. BN alone ends about a point above dropout alone, and dropout
beside BN changes less than half a point.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Study

PAPER = "Ioffe & Szegedy (2015), section 3.4"
# Twice the sampling error of an accuracy near .97 over 10,000 test images, and some.
COUNTS = 0.005


@STUDIES.register("bn_and_dropout")
def bn_and_dropout() -> Study:
    """BN and dropout, crossed."""
    return Study(
        question="Does BN take the place of dropout?",
        source=PAPER,
        duration="5 min",
        expected="BN alone a point above dropout alone; with BN, dropout changes little",
        base={
            "model": "mnist_cnn", "optimizer": "adam", "learning_rate": 0.002, "batch_size": 64,
            "steps": 400, "momentum": 0.9, "train_size": 2000, "log_interval": 20,
            "eval_interval": 100, "curve_size": 1000, "measure": (),
        },
        arms={
            "neither": {"normalizer": "none", "dropout": 0},
            "dropout": {"normalizer": "none", "dropout": 0.5},
            "BN": {"normalizer": "batch", "dropout": 0},
            "BN and dropout": {"normalizer": "batch", "dropout": 0.5},
        },
        columns=("validation_accuracy", "test_accuracy"),
        claims=(
            Claim(
                "dropout gains the net without BN half a point at least",
                "Srivastava et al. (2014)",
                expected="does not hold",
                effect=(
                    Comparison("test_accuracy", "dropout", "at least", "neither", margin=COUNTS),
                ),
            ),
            Claim(
                "BN takes the place of dropout: alone it is less than half a point behind dropout "
                "alone, or ahead",
                PAPER,
                expected="holds",
                effect=(
                    Comparison("test_accuracy", "BN", "at least", "dropout", margin=-COUNTS),
                ),
            ),
            Claim(
                "with BN, dropout adds less than half a point",
                PAPER,
                expected="holds",
                effect=(
                    Comparison("test_accuracy", "BN and dropout", "at most", "BN", margin=COUNTS),
                ),
            ),
        ),
        figures=("curve:accuracy/train", "curve:accuracy/validation", "outcomes"),
        baseline="neither",
        compared="test_accuracy",
        quick={"steps": 40, "log_interval": 10, "eval_interval": 40, "train_size": 1000,
               "validation_size": 500, "test_size": 1000},
    )
