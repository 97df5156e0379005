"""Figure 1 of the paper that introduced batch normalization: sigmoid nets on MNIST.

    python train.py --study=ioffe_mnist

Three hidden layers of 100 sigmoids, N(0, .1²) weights, plain SGD, batches of 60. BN is to speed up
the training and to steady what the last hidden layer sees.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test, value_at


def rows(results):
    """The metrics of each run, and how far the median inputs of the last hidden units travelled."""
    found = []
    for run in results:
        metrics = {
            **run.metrics,
            "accuracy_at_500": value_at(run, "accuracy/validation", 500),
            "median_range": value_at(run, "units/median_range", run.steps),
        }
        found.append(Row(run.config.arm_name, run.config.seed, metrics))
    return found


@STUDIES.register("ioffe_mnist")
def ioffe_mnist():
    """Study 6: Ioffe & Szegedy (2015), figure 1."""
    return Study(
        question="Does BN speed up a sigmoid net, and steady what its units see?",
        source="Ioffe & Szegedy (2015), section 4.1 and figure 1",
        duration="90 s",
        expected="BN at 90 % after 500 steps, without it some 4,250; the unit's median is steadier",
        base={
            "model": "ioffe_mlp", "activation": "sigmoid", "optimizer": "sgd",
            "learning_rate": 0.1, "batch_size": 60, "steps": 15_000, "momentum": 0.9,
            "log_interval": 250, "eval_interval": 250, "curve_size": 1000,
        },
        arms={"none": {"normalizer": "none"}, "batch": {"normalizer": "batch"}},
        metrics=(
            "accuracy_at_500", "steps_to_90_percent", "steps_to_95_percent",
            "steps_to_97_percent", "test_accuracy", "median_range",
        ),
        claims=(
            Claim(
                "the net with BN trains faster",
                "Ioffe & Szegedy (2015), figure 1 (a)",
                effect=(
                    Test("accuracy_at_500", "batch", "at least", 0.85),
                    Test("accuracy_at_500", "none", "at most", 0.40),
                    Test("steps_to_90_percent", "batch", "at most", "none", factor=0.5),
                ),
            ),
            Claim(
                "the distribution of a unit's input is steadier with BN",
                "Ioffe & Szegedy (2015), figure 1 (b, c)",
                effect=(Test("median_range", "batch", "at most", "none"),),
            ),
        ),
        reported={
            ("batch", "accuracy_at_500"): ".897 to .903",
            ("none", "accuracy_at_500"): ".099 to .211",
            ("batch", "steps_to_90_percent"): "500",
            ("none", "steps_to_90_percent"): "4,250",
            ("batch", "steps_to_95_percent"): "4,750",
            ("none", "steps_to_95_percent"): "10,500",
            ("batch", "steps_to_97_percent"): "13,000",
            ("none", "steps_to_97_percent"): "28,000",
            ("batch", "median_range"): ".55 to .71 of none's",
        },
        picture="accuracy_and_percentiles",
        quick={"steps": 1500, "log_interval": 250, "eval_interval": 250},
        derive=rows,
    )
