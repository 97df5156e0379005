"""Does batch normalization take the place of dropout?

    python train.py --study=bn_and_dropout

The MNIST CNN on 2,000 training images, few enough to overfit: with BN or dropout, with both and
with neither.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test

ARTICLE = "a Chinese forum article on BN by hand, after Ioffe & Szegedy (2015), section 3.4"
WITH, WITHOUT = "mnist_cnn", "mnist_cnn_no_dropout"


@STUDIES.register("bn_and_dropout")
def bn_and_dropout():
    """Study 3's claim about dropout, as a run."""
    return Study(
        question="Does BN take the place of dropout?",
        source=ARTICLE,
        duration="3 min",
        expected="BN alone is a point ahead of dropout alone; whether both are better, no verdict",
        base={
            "learning_rate": 0.002, "batch_size": 64, "steps": 400, "momentum": 0.9,
            "train_size": 2000, "log_interval": 20, "eval_interval": 100, "curve_size": 1000,
        },
        arms={
            "neither": {"normalizer": "none", "model": WITHOUT},
            "dropout": {"normalizer": "none", "model": WITH},
            "BN": {"normalizer": "batch", "model": WITHOUT},
            "BN and dropout": {"normalizer": "batch", "model": WITH},
        },
        metrics=("best_validation_accuracy", "validation_accuracy", "test_accuracy"),
        claims=(
            Claim(
                "dropout helps the net without BN",
                "Srivastava et al. (2014)",
                effect=(Test("test_accuracy", "dropout", "at least", "neither"),),
            ),
            Claim(
                "BN takes the place of dropout: alone it is as good as dropout alone",
                ARTICLE,
                effect=(Test("test_accuracy", "BN", "at least", "dropout"),),
            ),
            Claim(
                "with BN, dropout adds nothing",
                ARTICLE,
                effect=(Test("test_accuracy", "BN and dropout", "at most", "BN"),),
            ),
        ),
        reported={},
        picture="accuracy_over_steps",
        quick={"steps": 40, "log_interval": 10, "eval_interval": 40, "train_size": 1000,
               "validation_size": 500, "test_size": 1000},
        quick_seeds=1,
    )
