"""A deep thin net with a bad initialization, with and without batch normalization.

    python train.py --study=bad_init_regression

Eight hidden layers of ten units learn y = x² - 5 from 2,000 noisy points; their weights start from
N(0, .1²) and their biases at -.2. The controls change one thing each: the bias, the initialization.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Study, Test

TUTORIAL = "a PyTorch tutorial on batch normalization"


def _arms():
    arms = {}
    for activation in ("tanh", "relu"):
        for normalizer in ("none", "batch"):
            arms[f"{activation} {normalizer}"] = {
                "activation": activation, "normalizer": normalizer, "model": "bad_init_mlp",
            }
        for name, model in (("zero bias", "bad_init_mlp_zero_bias"), ("He", "bad_init_mlp_he")):
            arms[f"{activation} none, {name}"] = {
                "activation": activation, "normalizer": "none", "model": model,
            }
    return arms


@STUDIES.register("bad_init_regression")
def bad_init_regression():
    """Study 4: what BN does for a net that is badly initialized."""
    return Study(
        question="Does BN rescue a badly initialized net, and what was wrong with it?",
        source=TUTORIAL,
        duration="60 s",
        expected="mean squared error 690 to 840 without BN, under 250 with it",
        base={
            "dataset": "quadratic", "validation_size": 200, "momentum": 0.5, "epsilon": 1e-5,
            "optimizer": "adam", "learning_rate": 0.03, "batch_size": 64, "steps": 372,
            "log_interval": 31, "eval_interval": 31, "curve_size": 200,
        },
        arms=_arms(),
        metrics=("test_loss",),
        claims=(
            Claim(
                "BN rescues the net",
                TUTORIAL,
                effect=(
                    Test("test_loss", "tanh batch", "at most", "tanh none", factor=0.5),
                    Test("test_loss", "relu batch", "at most", "relu none", factor=0.5),
                ),
            ),
            Claim(
                "the relu net dies of its negative bias",
                TUTORIAL,
                effect=(Test("test_loss", "relu none", "at least", 780),),
                cause=(Test("test_loss", "relu none, zero bias", "at most", 200),),
                otherwise="it stays dead with a bias of 0 in some seeds",
            ),
            Claim(
                "the tanh net fails because the initialization saturates it",
                TUTORIAL,
                effect=(Test("test_loss", "tanh none", "at least", 600),),
                cause=(Test("test_loss", "tanh none, zero bias", "at most", 200),),
                otherwise="nothing is saturated at the start: the weights are so small that the "
                "signal vanishes, whatever the bias",
            ),
        ),
        reported={
            ("tanh none", "test_loss"): "685 to 711",
            ("tanh batch", "test_loss"): "45 to 245",
            ("relu none", "test_loss"): "824 to 854",
            ("relu batch", "test_loss"): "10 to 106",
            ("relu none, zero bias", "test_loss"): "7 to 17 in 6 of 7",
        },
        picture="loss_over_steps",
        quick={"steps": 124},
        seeds=5,
    )
