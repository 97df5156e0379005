"""Figure 1 of the paper that introduced batch normalization: sigmoid nets on MNIST.

    python train.py --study=ioffe_mnist

Three hidden layers of 100 sigmoids, N(0, .1²) weights, plain SGD, batches of 60, at rates of .1, .5
and 1. BN is to speed up the training and to steady what the last hidden layer sees.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test, values_at

PAPER = "Ioffe & Szegedy (2015), figure 1"
# The arms at the first rate are the paper's figure; they go by the names of their normalizers.
ARMS = {
    normalizer + suffix: {"normalizer": normalizer, "learning_rate": rate}
    for suffix, rate in (("", 0.1), (" at .5", 0.5), (" at 1", 1.0))
    for normalizer in ("none", "batch")
}
TARGETS = (90, 95, 97, 98)


def _faster(suffix):
    return tuple(
        Test(f"steps_to_{percent}_percent", f"batch{suffix}", "at most", f"none{suffix}",
             factor=0.9)
        for percent in (90, 95, 97)
    )


def rows(results):
    """The metrics of each run, and how far the median inputs of the last hidden units travelled."""
    found = []
    for run in results:
        metrics = {
            **run.metrics,
            **values_at(run, "accuracy/validation", [500], "accuracy"),
            "median_range": run.curves.get("units/median_range", [(0, None)])[-1][1],
        }
        found.append(Row(run.config.arm_name, run.config.seed, metrics))
    return found


@STUDIES.register("ioffe_mnist")
def ioffe_mnist():
    """Study 6: Ioffe & Szegedy (2015), figure 1."""
    return Study(
        question="Does BN speed up a sigmoid net (rate .1 unless named), and steady its units?",
        source="Ioffe & Szegedy (2015), section 4.1 and figure 1",
        duration="2 min",
        expected="BN at 90 % after 500 steps, without it some 4,250; the unit's median is steadier",
        base={
            "model": "ioffe_mlp", "activation": "sigmoid", "optimizer": "sgd",
            "batch_size": 60, "steps": 15_000, "momentum": 0.9,
            "log_interval": 250, "eval_interval": 250, "curve_size": 2500,
        },
        arms=ARMS,
        metrics=(
            "accuracy_at_500", *(f"steps_to_{percent}_percent" for percent in TARGETS),
            "test_accuracy", "median_range",
        ),
        claims=(
            Claim(
                "the net with BN trains faster",
                f"{PAPER} (a)",
                effect=(
                    Test("accuracy_at_500", "batch", "at least", 0.85),
                    Test("accuracy_at_500", "none", "at most", 0.40),
                    Test("steps_to_90_percent", "batch", "at most", "none", factor=0.5),
                ),
            ),
            Claim(
                "the distribution of a unit's input is steadier with BN",
                f"{PAPER} (b, c)",
                effect=(Test("median_range", "batch", "at most", "none"),),
            ),
            Claim(
                "at a rate of .5, which both can take, the net with BN still trains faster",
                "Ioffe & Szegedy (2015), section 3.3, on higher rates",
                effect=_faster(" at .5"),
            ),
            Claim(
                "98 % are reached with BN only (at .5, within 15,000 steps)",
                "this toolkit",
                effect=(
                    Test("steps_to_98_percent", "batch at .5", "at most", 15_000),
                    Test("steps_to_98_percent", "none at .5", "at least", 15_001),
                ),
            ),
        ),
        reported={
            ("batch", "accuracy_at_500"): ".897 to .903",
            ("none", "accuracy_at_500"): ".099 to .211",
            ("batch", "median_range"): ".55 to .71 of none's",
            **{
                (arm, f"steps_to_{percent}_percent"): figure
                for arm, figures in (
                    ("none", ("4,250", "10,500", "28,000")),
                    ("batch", ("500", "4,750", "13,000")),
                    ("none at .5", ("1,000 to 1,250", "3,000 to 3,250", "7,750")),
                    ("batch at .5", ("200 to 400", "2,250 to 2,500", "5,000 to 5,500")),
                    ("none at 1", ("1,000", "2,250", "5,000")),
                    ("batch at 1", ("400", "1,750", "4,000")),
                )
                for percent, figure in zip(TARGETS, figures)
            },
        },
        picture="accuracy_and_percentiles",
        quick={"steps": 1500, "log_interval": 250, "eval_interval": 250},
        derive=rows,
    )
