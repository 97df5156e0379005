"""A convolutional net at a high learning rate: what is it that fails without batch normalization?

    python train.py --study=conv_bn_relu

The tutorial's net takes raw pixels and the logarithm of a clipped softmax. The controls change one
of these at a time.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test

NEVER_UPDATED = "pitfall/never_updated/whole"
TUTORIAL = "a Japanese blog on TensorBoard and BN"


@STUDIES.register("conv_bn_relu")
def conv_bn_relu():
    """Study 2: BN at a learning rate of .01, and the clipped logarithm."""
    return Study(
        question="Why does the cost not fall at learning rate .01 without BN?",
        source=TUTORIAL,
        duration="4 min",
        expected="no BN at .1 with the clipped loss, at .95 with a stable one",
        base={
            "model": "conv_bn_relu", "pixels": "raw", "loss": "clipped_softmax",
            "learning_rate": 0.01, "batch_size": 100, "steps": 800, "momentum": 0.95,
            "log_interval": 50, "eval_interval": 200, "curve_size": 500,
        },
        arms={
            "none": {"normalizer": "none"},
            "batch": {"normalizer": "batch", "pitfalls": "correct,never_updated"},
            "none at .001": {"normalizer": "none", "learning_rate": 0.001},
            "none, stable loss": {"normalizer": "none", "loss": "softmax"},
            "batch, stable loss": {"normalizer": "batch", "loss": "softmax"},
            "none, scaled pixels": {"normalizer": "none", "pixels": "unit"},
            "batch, scaled pixels": {"normalizer": "batch", "pixels": "unit"},
        },
        metrics=("start_no_gradient", "test_accuracy", "predicted_classes", NEVER_UPDATED),
        claims=(
            Claim(
                "at a learning rate of .01 the net learns with BN only",
                TUTORIAL,
                effect=(
                    Test("test_accuracy", "none", "at most", 0.25),
                    Test("test_accuracy", "batch", "at least", 0.6),
                ),
                # Were BN what is missing, the controls without it would fail, too.
                cause=(
                    Test("test_accuracy", "none, stable loss", "at most", 0.25),
                    Test("test_accuracy", "none, scaled pixels", "at most", 0.25),
                ),
                otherwise="the clipped logarithm has no gradient for the raw pixels' large logits; "
                "a stable loss or scaled pixels learn at the same rate without BN",
            ),
            Claim(
                "at .001 the net learns without BN",
                TUTORIAL,
                effect=(Test("test_accuracy", "none at .001", "at least", 0.85),),
            ),
            Claim(
                "the clipped logarithm harms the net with BN, too: with a stable loss it is better",
                "this toolkit",
                effect=(
                    Test("test_accuracy", "batch, stable loss", "at least", "batch", margin=0.005),
                ),
            ),
            Claim(
                "without raw pixels or the clipped logarithm BN gains less than a point",
                "this toolkit",
                effect=(
                    Test("test_accuracy", "none, scaled pixels", "at least", "batch, stable loss",
                         margin=-0.01),
                ),
            ),
        ),
        reported={
            ("none", "test_accuracy"): ".10", ("batch", "test_accuracy"): ".980 to .986",
            ("none at .001", "test_accuracy"): ".974 to .975",
            ("none, stable loss", "test_accuracy"): ".951 to .956",
            ("none, scaled pixels", "test_accuracy"): ".978 to .984",
            ("batch, scaled pixels", "test_accuracy"): "no better",
            ("none", "start_no_gradient"): ".52 to .81",
            ("batch", NEVER_UPDATED): ".02 to .24 lower",
        },
        picture="accuracy_over_steps",
        quick={"steps": 60, "log_interval": 30, "eval_interval": 60, "train_size": 10_000,
               "test_size": 2000},
        quick_seeds=1,
    )
