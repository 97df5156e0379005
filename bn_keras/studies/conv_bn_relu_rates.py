"""A net whose softmax head is not normalized, under SGD: does BN allow a higher rate there, too?

    python train.py --study=conv_bn_relu_rates

The counterpart of `learning_rates`, where it does. Pixels are scaled: on raw ones the net without
BN learns at hardly any rate. Takes 7 min on 2 cores. With the clipped loss the largest workable
rate is lower with BN: .036 against .36, or .16 elsewhere. With a stable loss it is no higher.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Ladder, Study, ladder_arms

RATES = (0.036, 0.076, 0.16, 0.36, 0.76, 1.6)
NETS = {
    f"{normalizer}{suffix}": {"normalizer": normalizer, "loss": loss}
    for suffix, loss in ((", clipped loss", "clipped_softmax"), ("", "softmax"))
    for normalizer in ("none", "batch")
}


@STUDIES.register("conv_bn_relu_rates")
def conv_bn_relu_rates() -> Study:
    """The net of `conv_bn_relu` under SGD, at six rates."""
    return Study(
        question="Does BN allow a higher rate on scaled pixels, the softmax head not normalized?",
        source="a Japanese blog on TensorBoard and BN, with SGD in place of Adam",
        duration="7 min",
        expected="no; with the tutorial's clipped loss the largest workable rate is lower with BN",
        base={
            "model": "conv_bn_relu", "pixels": "unit", "optimizer": "sgd", "batch_size": 100,
            "steps": 200, "momentum": 0.95, "log_interval": 50, "eval_interval": 200,
            "curve_size": 500, "measure": (),
        },
        arms=ladder_arms(NETS, RATES),
        ladder=Ladder(RATES, baseline="none"),
        columns=("largest_workable_rate", "test_accuracy_at_0.036", "test_accuracy_at_0.16",
                 "test_accuracy_at_0.36"),
        claims=(
            Claim(
                "BN allows a learning rate half as high again",
                "Ioffe & Szegedy (2015), section 3.3",
                expected="does not hold",
                effect=(
                    Comparison("largest_workable_rate", "batch", "at least", "none", factor=1.5),
                ),
            ),
            Claim(
                "with the clipped loss the largest rate is lower with BN, by a quarter at least",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("largest_workable_rate", "batch, clipped loss", "at most",
                               "none, clipped loss", factor=0.75),
                ),
            ),
        ),
        reported={
            ("none, clipped loss", "largest_workable_rate"): ".16",
            ("batch, clipped loss", "largest_workable_rate"): ".036",
        },
        figures=("accuracy_over_rates",),
        compared="largest_workable_rate",
        quick={"steps": 20, "log_interval": 20, "eval_interval": 20, "train_size": 5000,
               "validation_size": 200, "test_size": 200},
    )
