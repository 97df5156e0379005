"""The MNIST CNN under Adam at four learning rates: from which rate on does it need BN?

    python train.py --study=mnist_cnn_rates

Each rate is tried without BN, without BN from Glorot's weights in the dense layers, and with BN.
Takes 9 min on 2 cores. At .01 the net without BN learns in most seeds and not in all, from Glorot's
weights or others. At .05 and above it learns with BN; without BN it did in 3 of 23 seeds elsewhere
and in none of the five below.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Ladder, Study, ladder_arms

RATES = (0.01, 0.03, 0.05, 0.1)
GLOROT = "none, Glorot's dense layers"
NETS = {
    "none": {"normalizer": "none"},
    GLOROT: {"normalizer": "none", "initializer": "glorot"},
    "batch": {"normalizer": "batch"},
}
BLOG = "a TensorFlow 1 blog on an MNIST CNN with BN and dropout (flag --is_bn)"
THIS = "this toolkit"


def _with_bn_only(rate: float) -> Claim:
    shown = f"{rate:g}"
    metric = f"test_accuracy_at_{shown}"
    return Claim(
        f"at {shown.removeprefix('0')} the net learns with BN only",
        THIS,
        expected="holds",
        effect=(
            Comparison(metric, "none", "at most", 0.2),
            Comparison(metric, "batch", "at least", 0.85),
        ),
    )


def _not_from_glorot(rate: float) -> Claim:
    shown = f"{rate:g}"
    return Claim(
        f"at {shown.removeprefix('0')} Glorot's weights do not replace BN",
        THIS,
        expected="holds",
        effect=(Comparison(f"test_accuracy_at_{shown}", GLOROT, "at most", 0.2),),
    )


@STUDIES.register("mnist_cnn_rates")
def mnist_cnn_rates() -> Study:
    """Adam at .01 to .1."""
    return Study(
        question="From which learning rate on does the MNIST CNN need BN?",
        source=f"{BLOG}, at higher rates than its own",
        duration="9 min",
        expected="at .01 without BN, too, but for a seed here and there; at .05 and above with BN "
        "only, but for about one seed of eight",
        base={
            "model": "mnist_cnn", "optimizer": "adam", "batch_size": 64, "steps": 200,
            "momentum": 0.9, "log_interval": 10, "eval_interval": 50, "curve_size": 500,
            "measure": (),
        },
        arms=ladder_arms(NETS, RATES),
        ladder=Ladder(RATES, baseline="none"),
        columns=("largest_workable_rate", *(f"test_accuracy_at_{rate:g}" for rate in RATES)),
        claims=(
            Claim(
                "at .01 both nets learn, the one without BN from Glorot's weights",
                THIS,
                expected="not decided",
                effect=(
                    Comparison("test_accuracy_at_0.01", GLOROT, "at least", 0.85),
                    Comparison("test_accuracy_at_0.01", "batch", "at least", 0.85),
                ),
            ),
            Claim(
                "without BN, the initialization of the dense layers changes less than five points "
                "at .01",
                f"{BLOG}, which compares nets with different ones",
                expected="not decided",
                effect=(
                    Comparison("test_accuracy_at_0.01", "none", "at least", GLOROT, margin=-0.05),
                    Comparison("test_accuracy_at_0.01", "none", "at most", GLOROT, margin=0.05),
                ),
            ),
            *(_with_bn_only(rate) for rate in (0.05, 0.1)),
            *(_not_from_glorot(rate) for rate in (0.05, 0.1)),
        ),
        reported={
            (GLOROT, "test_accuracy_at_0.01"): "learns",
            ("batch", "test_accuracy_at_0.01"): "learns",
            (GLOROT, "test_accuracy_at_0.03"): ".110, .859",
            ("none", "test_accuracy_at_0.05"): ".09 to .11, in 3 of 23 seeds .69 to .85",
            (GLOROT, "test_accuracy_at_0.05"): ".096 to .112",
            ("batch", "test_accuracy_at_0.05"): ".92 to .98",
            (GLOROT, "test_accuracy_at_0.1"): ".096 to .113, once .707",
            ("batch", "test_accuracy_at_0.1"): ".867 to .980",
        },
        figures=("accuracy_over_rates",),
        compared="largest_workable_rate",
        quick={"steps": 30, "log_interval": 10, "eval_interval": 30, "train_size": 10_000,
               "validation_size": 500, "test_size": 1000},
        quick_arms=tuple(f"{net} at 0.05" for net in NETS),
    )
