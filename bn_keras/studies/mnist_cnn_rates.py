"""The MNIST CNN of the headline at four learning rates: from where on does it need BN?

    python train.py --study=mnist_cnn_rates

`python train.py` shows the third of these rates alone.
"""

import functools

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test, rates

RATES = (0.01, 0.03, 0.05, 0.1)
GLOROT = "none, Glorot's dense layers"
NETS = {
    "none": {"normalizer": "none", "model": "mnist_cnn"},
    GLOROT: {"normalizer": "none", "model": "mnist_cnn_glorot"},
    "batch": {"normalizer": "batch", "model": "mnist_cnn"},
}
THIS = "this toolkit"


def _with_bn_only(rate):
    shown = f"{rate:g}"
    metric = f"test_accuracy_at_{shown}"
    return Claim(
        f"at {shown.removeprefix('0')} the net learns with BN only",
        THIS,
        effect=(
            Test(metric, "none", "at most", 0.2),
            Test(metric, GLOROT, "at most", 0.2),
            Test(metric, "batch", "at least", 0.85),
        ),
    )


@STUDIES.register("mnist_cnn_rates")
def mnist_cnn_rates():
    """Study 1's ladder: Adam at .01 to .1."""
    return Study(
        question="From which learning rate on does the MNIST CNN need BN?",
        source="a TensorFlow 1 blog on BN and dropout, at higher rates than its own",
        duration="6 min",
        expected="at .01 without BN, too, from Glorot's weights; at .05 and above with BN only",
        base={
            "batch_size": 64, "steps": 200, "momentum": 0.9,
            "log_interval": 10, "eval_interval": 50, "curve_size": 500,
        },
        arms=rates.arms(NETS, RATES),
        metrics=("largest_workable_rate", *(f"test_accuracy_at_{rate:g}" for rate in RATES)),
        claims=(
            Claim(
                "at .01 both nets learn, the one without BN from Glorot's weights",
                THIS,
                effect=(
                    Test("test_accuracy_at_0.01", GLOROT, "at least", 0.85),
                    Test("test_accuracy_at_0.01", "batch", "at least", 0.85),
                ),
            ),
            Claim(
                "without BN, the initialization of the dense layers has no effect at .01",
                "a TensorFlow 1 blog on BN and dropout, which compares nets with different ones",
                effect=(
                    Test("test_accuracy_at_0.01", "none", "at least", GLOROT, margin=-0.05),
                    Test("test_accuracy_at_0.01", "none", "at most", GLOROT, margin=0.05),
                ),
            ),
            *(_with_bn_only(rate) for rate in (0.05, 0.1)),
        ),
        reported={
            (GLOROT, "test_accuracy_at_0.01"): "learns",
            ("batch", "test_accuracy_at_0.01"): "learns",
            (GLOROT, "test_accuracy_at_0.03"): ".110, .859",
            (GLOROT, "test_accuracy_at_0.05"): ".096 to .112",
            ("batch", "test_accuracy_at_0.05"): ".92 to .96",
            (GLOROT, "test_accuracy_at_0.1"): ".096 to .113, once .707",
            ("batch", "test_accuracy_at_0.1"): ".867 to .980",
        },
        picture="accuracy_over_rates",
        quick={"steps": 30, "log_interval": 10, "eval_interval": 30, "train_size": 10_000,
               "validation_size": 500, "test_size": 1000},
        quick_seeds=1,
        quick_arms=tuple(f"{net} at 0.05" for net in NETS),
        derive=functools.partial(rates.rows, rates=RATES, baseline="none"),
    )
