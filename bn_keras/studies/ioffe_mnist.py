"""Figure 1 of the paper that introduced batch normalization: sigmoid nets on MNIST.

    python train.py --study=ioffe_mnist

Three hidden layers of 100 sigmoids, N(0, .1²) weights, plain SGD, batches of 60, at rates of .1, .5
and 1. The paper shows that BN speeds up the training and steadies the inputs of the last hidden
units. Takes 5 min on 2 cores. At rate .1 the net with BN is at 90 % after 500 to 750 steps,
without it after some 4,250; at .5 it is faster in 9 of 10 seeds.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Study

PAPER = "Ioffe & Szegedy (2015), figure 1"
# The arms at the first rate are the paper's figure; they go by the names of their normalizers.
ARMS = {
    normalizer + suffix: {"normalizer": normalizer, "learning_rate": rate}
    for suffix, rate in (("", 0.1), (" at .5", 0.5), (" at 1", 1.0))
    for normalizer in ("none", "batch")
}
TARGETS = (90, 95, 97, 98)
STEPS = 15_000


@STUDIES.register("ioffe_mnist", metrics={
    "median_range": ("how far the median inputs of the last units moved", "", "high"),
})
def ioffe_mnist() -> Study:
    """The paper's figure 1, at its rate and at two higher ones."""
    return Study(
        question="Does BN speed up a sigmoid net (rate .1 unless named), and steady its units?",
        source="Ioffe & Szegedy (2015), section 4.1 and figure 1",
        duration="5 min",
        expected="BN at 90 % after 500 to 750 steps, without it 4,250; the units' median steadier",
        base={
            "model": "ioffe_mlp", "activation": "sigmoid", "optimizer": "sgd",
            "batch_size": 60, "steps": STEPS, "momentum": 0.9,
            "log_interval": 250, "eval_interval": 250, "curve_size": 2500, "measure": ("units",),
        },
        arms=ARMS,
        columns=(
            "accuracy_at_500", *(f"steps_to_{percent}_percent" for percent in TARGETS),
            "test_accuracy", "median_range",
        ),
        derived={
            "accuracy_at_500": "at('accuracy/validation', 500)",
            "median_range": "last('units/median_range')",
        },
        claims=(
            Claim(
                "the net with BN trains faster",
                f"{PAPER} (a)",
                expected="holds",
                effect=(
                    Comparison("accuracy_at_500", "batch", "at least", 0.85),
                    Comparison("accuracy_at_500", "none", "at most", 0.40),
                    Comparison("steps_to_90_percent", "batch", "at most", "none", factor=0.5),
                ),
            ),
            Claim(
                "the median inputs of the last hidden units move at least a tenth less with BN",
                f"{PAPER} (b, c)",
                expected="holds",
                effect=(Comparison("median_range", "batch", "at most", "none", factor=0.9),),
            ),
            Claim(
                "at a rate of .5, which both can take, the net with BN needs at most nine tenths "
                "of the steps to 90, 95 and 97 %",
                "Ioffe & Szegedy (2015), section 3.3, on higher rates",
                expected="holds",
                effect=tuple(
                    Comparison(f"steps_to_{percent}_percent", "batch at .5", "at most",
                               "none at .5", factor=0.9)
                    for percent in TARGETS[:3]
                ),
            ),
            Claim(
                f"without BN 98 % are not reached within {STEPS:,} steps at .5",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("steps_to_98_percent", "none at .5", "at least", STEPS + 1),
                ),
            ),
            Claim(
                f"with BN 98 % are reached within {STEPS:,} steps at .5",
                "this toolkit",
                expected="not decided",
                effect=(Comparison("steps_to_98_percent", "batch at .5", "at most", STEPS),),
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
                    ("none at .5",
                     ("1,000 to 1,250", "3,000 to 3,250", "7,750", "never in 10 of 10")),
                    ("batch at .5",
                     ("200 to 400", "2,250 to 2,500", "5,000 to 5,500", "never in 2 of 10")),
                    ("none at 1", ("1,000", "2,250", "5,000")),
                    ("batch at 1", ("400", "1,750", "4,000")),
                )
                for percent, figure in zip(TARGETS, figures)
            },
        },
        figures=("curve:accuracy/validation", "percentiles:none", "percentiles:batch"),
        quick={"steps": 1500, "log_interval": 250, "eval_interval": 250},
        seeds=10,
    )
