"""Does batch normalization allow a higher learning rate, and how much higher?

    python train.py --study=learning_rates

Trains 255 nets, five seeds at seventeen rates without BN, with it, and with it on the logits too:
3 min on 2 cores. Over all seeds that were ever tried, the largest workable rate is .13 to .57
without BN and 2.4 to 3.9 with it, or 17 to 120 with normalized logits.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Ladder, Study, ladder_arms

# Each some 1.6 times the last: a coarser ladder gives ratios of two or three values only.
RATES = (0.05, 0.08, 0.13, 0.21, 0.35, 0.57, 0.92, 1.5, 2.4, 3.9, 6.4, 10.0, 17.0, 27.0, 45.0, 73.0,
         120.0)
NETS = {
    "none": {"model": "deep_mlp", "normalizer": "none"},
    "batch": {"model": "deep_mlp", "normalizer": "batch"},
    "batch, logits too": {"model": "deep_mlp_logits", "normalizer": "batch"},
}


@STUDIES.register("learning_rates")
def learning_rates() -> Study:
    """The largest workable learning rate of a deep MLP."""
    return Study(
        question="Does BN allow a higher learning rate, and how much higher?",
        source="Ioffe & Szegedy (2015), section 3.3",
        duration="3 min",
        expected="without BN .13 to .57, with BN 2.4 to 3.9, with normalized logits 17 to 120",
        base={
            "optimizer": "sgd", "batch_size": 100, "steps": 400, "log_interval": 100,
            "eval_interval": 100, "curve_size": 1000, "momentum": 0.9, "measure": (),
        },
        arms=ladder_arms(NETS, RATES),
        ladder=Ladder(RATES, baseline="none"),
        columns=("largest_workable_rate", "times_none", "test_accuracy_at_2.4"),
        claims=(
            Claim(
                "BN allows a learning rate three times as high, at least",
                "Ioffe & Szegedy (2015), section 3.3",
                expected="holds",
                effect=(
                    Comparison("largest_workable_rate", "batch", "at least", "none", factor=3.0),
                    Comparison("test_accuracy_at_2.4", "batch", "at least", 0.88),
                    Comparison("test_accuracy_at_2.4", "none", "at most", 0.30),
                ),
            ),
            Claim(
                "the layer without a normalizer sets the limit: with the logits normalized too, "
                "the rate may be twice as high again",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("largest_workable_rate", "batch, logits too", "at least", "batch",
                               factor=2.0),
                ),
            ),
        ),
        reported={
            ("none", "largest_workable_rate"): ".13 to .35",
            ("batch", "largest_workable_rate"): "2.4",
            ("batch, logits too", "largest_workable_rate"): "17",
            ("batch", "times_none"): "6.9 to 18",
            ("batch, logits too", "times_none"): "49 to 131",
            ("none", "test_accuracy_at_2.4"): ".092",
            ("batch", "test_accuracy_at_2.4"): ".935 to .937",
        },
        figures=("accuracy_over_rates",),
        compared="largest_workable_rate",
        quick={"steps": 150, "log_interval": 50, "eval_interval": 150},
    )
