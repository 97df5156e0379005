"""A deep thin net with a bad initialization, with and without batch normalization.

    python train.py --study=bad_init_regression

Eight hidden layers of ten units learn y = x² - 5 from 2,000 noisy points; their weights start from
N(0, .1²) and their biases at -.2. The controls change one thing each: the bias, the initialization,
and how the moving averages of the nets with BN are formed. An epoch ends with a batch of 16.

Takes 2 min on 2 cores. The animations of tanh and relu (.gif and .html) show the values in every
layer, epoch by epoch. The tutorial's nets without BN stay at a squared error of 690 to 850. With BN
they end between 10 and 360 (medians of 60 and 67), or at 6 to 60 with exact population statistics;
other weights, biases and averages change that, as the controls show.
"""

from typing import Dict, Mapping, Tuple

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Study

TUTORIAL = "Morvan Zhou's PyTorch tutorial, 504_batch_normalization.py"
ACTIVATIONS = ("tanh", "relu")

# Heading, arm, metric of a layer, figures found elsewhere by layer.
BY_LAYER: Tuple[Tuple[str, str, str, Mapping[int, str]], ...] = (
    ("tanh, no BN: deviation at the start", "tanh none", "start_std", {1: ".33", 8: "5e-5"}),
    ("tanh, no BN: saturated at the end", "tanh none", "end_saturated_units", {}),
    ("tanh, BN: saturated at the end", "tanh batch", "end_saturated_units", {}),
    ("relu, no BN: dead at the start", "relu none", "start_dead_units",
     {1: ".14", 2: ".86", 3: "1"}),
    ("relu, bias 0: dead at the start", "relu none, zero bias", "start_dead_units", {}),
    ("relu, BN: dead at the end", "relu batch", "end_dead_units", {}),
)


def _arms() -> Dict[str, Dict[str, object]]:
    arms: Dict[str, Dict[str, object]] = {}
    for activation in ACTIVATIONS:
        none: Dict[str, object] = {"activation": activation, "normalizer": "none"}
        batch: Dict[str, object] = {"activation": activation, "normalizer": "batch"}
        arms[f"{activation} none"] = none
        arms[f"{activation} batch"] = batch
        arms[f"{activation} none, zero bias"] = {**none, "bias": 0}
        arms[f"{activation} none, He"] = {**none, "bias": 0, "initializer": "he"}
        arms[f"{activation} batch, momentum .99"] = {**batch, "momentum": 0.99}
        arms[f"{activation} batch, whole batches"] = {**batch, "last_batch": "drop"}
    return arms


@STUDIES.register("bad_init_regression", metrics={
    "times_exact_loss": ("test loss over that with exact statistics", "times", None),
})
def bad_init_regression() -> Study:
    """BN and a badly initialized net."""
    return Study(
        question="Does BN rescue a badly initialized net, and what was wrong with it?",
        source=TUTORIAL,
        duration="2 min",
        expected="squared error 690 to 850 without BN; with it 10 to 360, median 60 to 70",
        base={
            "model": "bad_init_mlp",
            # x as it is: the scale of pixels would shrink the signal before the net does.
            "dataset": "quadratic", "pixels": "raw", "validation_size": 200,
            "momentum": 0.5, "epsilon": 1e-5, "last_batch": "keep",
            "optimizer": "adam", "learning_rate": 0.03, "batch_size": 64, "steps": 384,
            "log_interval": 32, "eval_interval": 32, "curve_size": 200,
            "measure": ("layers", "population_loss"),
        },
        arms=_arms(),
        columns=("test_loss", "test_loss_population_statistics", "times_exact_loss"),
        derived={"times_exact_loss": "test_loss / test_loss_population_statistics"},
        claims=(
            Claim(
                "BN rescues the net: it halves the squared error at least",
                TUTORIAL,
                expected="holds",
                effect=tuple(
                    Comparison("test_loss", f"{activation} batch", "at most", f"{activation} none",
                               factor=0.5)
                    for activation in ACTIVATIONS
                ),
            ),
            Claim(
                "the relu net dies of its negative bias",
                TUTORIAL,
                expected="holds",
                effect=(
                    Comparison("test_loss", "relu none", "at least", 780),
                    Comparison("end_dead_units_layer_3", "relu none", "at least", 1),
                ),
                cause=(
                    Comparison("test_loss", "relu none, zero bias", "at most", 200),
                    Comparison("start_dead_units_layer_3", "relu none, zero bias", "at most", 0.9),
                ),
                otherwise="it stays dead with a bias of 0",
            ),
            Claim(
                "with He's initialization the relu net learns without BN",
                "He et al. (2015)",
                expected="holds",
                effect=(Comparison("test_loss", "relu none, He", "at most", 60),),
            ),
            Claim(
                "the initialization saturates the tanh units",
                TUTORIAL,
                expected="does not hold",
                effect=(Comparison("start_saturated_units", "tanh none", "at least", 0.1),),
            ),
            Claim(
                "at the start the tanh net's signal vanishes; saturation comes with training",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("start_std_layer_8", "tanh none", "at most", "tanh none, He",
                               factor=0.01),
                    Comparison("start_saturated_units", "tanh none", "at most", 0),
                    Comparison("end_saturated_units", "tanh none", "at least", 0.5),
                ),
            ),
            Claim(
                "with Keras's default momentum of .99 the test loss is at most 1.5 times as high",
                "this toolkit",
                expected="does not hold",
                effect=tuple(
                    Comparison("test_loss", f"{activation} batch, momentum .99", "at most",
                               f"{activation} batch", factor=1.5)
                    for activation in ACTIVATIONS
                ),
            ),
            Claim(
                "at momentum .5 a small last batch costs a tenth more than whole batches do, "
                "measured against exact statistics of the same weights",
                "this toolkit",
                expected="not decided",
                effect=tuple(
                    Comparison("times_exact_loss", f"{activation} batch", "at least",
                               f"{activation} batch, whole batches", factor=1.1)
                    for activation in ACTIVATIONS
                ),
            ),
            Claim(
                "with BN and exact population statistics the relu net has learned the parabola",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("test_loss_population_statistics", "relu batch", "at most", 60),
                ),
            ),
        ),
        reported={
            ("tanh none", "test_loss"): "685 to 711",
            ("tanh batch", "test_loss"): "45 to 245",
            ("tanh batch", "test_loss_population_statistics"): "40 to 50",
            ("relu batch", "test_loss_population_statistics"): "8 to 20",
            ("relu none", "test_loss"): "824 to 854",
            ("relu batch", "test_loss"): "10 to 358",
            ("relu none, zero bias", "test_loss"): "6 to 694, under 60 in 22 of 25",
            ("tanh batch, momentum .99", "test_loss"): "1,046 to 2,451",
            ("relu batch, momentum .99", "test_loss"): "77 to 9,520",
        },
        figures=(
            "fits:tanh", "errors:tanh", "starts:tanh", "fits:relu", "errors:relu", "starts:relu",
        ),
        tables={"by_layer": BY_LAYER},
        animations={
            activation: (f"{activation} batch", f"{activation} none") for activation in ACTIVATIONS
        },
        # Whole batches alone: each size of a batch is compiled anew.
        quick={"steps": 62, "last_batch": "drop", "log_interval": 31, "eval_interval": 31},
        quick_arms=("tanh none", "relu none", "relu batch"),
        seeds=10,
    )
