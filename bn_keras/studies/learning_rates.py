"""Does batch normalization allow a higher learning rate, and how much higher?

    python train.py --study=learning_rates

Trains 81 nets, three seeds at nine rates without BN, with it, and with it on the logits too.
"""

import functools

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test, rates

RATES = (0.05, 0.13, 0.35, 0.92, 2.4, 6.4, 17.0, 45.0, 120.0)  # each some 2.6 times the last
NETS = {
    "none": {"model": "deep_mlp", "normalizer": "none"},
    "batch": {"model": "deep_mlp", "normalizer": "batch"},
    "batch, logits too": {"model": "deep_mlp_logits", "normalizer": "batch"},
}


@STUDIES.register("learning_rates")
def learning_rates():
    """Study 7: the largest workable learning rate of a deep MLP."""
    return Study(
        question="Does BN allow a higher learning rate, and how much higher?",
        source="Ioffe & Szegedy (2015), section 3.3",
        duration="50 s",
        expected="without BN up to .13 or .35, with BN 2.4, with normalized logits 17",
        base={
            "optimizer": "sgd", "batch_size": 100, "steps": 400, "log_interval": 100,
            "eval_interval": 100, "curve_size": 1000, "momentum": 0.9,
        },
        arms=rates.arms(NETS, RATES),
        metrics=("largest_workable_rate", "times_none", "test_accuracy_at_2.4"),
        claims=(
            Claim(
                "BN allows a learning rate several times as high",
                "Ioffe & Szegedy (2015), section 3.3",
                effect=(
                    Test("largest_workable_rate", "batch", "at least", "none", factor=3.0),
                    Test("test_accuracy_at_2.4", "batch", "at least", 0.88),
                    Test("test_accuracy_at_2.4", "none", "at most", 0.30),
                ),
            ),
            Claim(
                "the layer without a normalizer sets the limit: with the logits normalized too, "
                "the rate may be higher still",
                "this toolkit",
                effect=(
                    Test("largest_workable_rate", "batch, logits too", "at least", "batch",
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
        picture="accuracy_over_rates",
        quick={"steps": 150, "log_interval": 50, "eval_interval": 150},
        quick_seeds=1,
        derive=functools.partial(rates.rows, rates=RATES, baseline="none"),
    )
