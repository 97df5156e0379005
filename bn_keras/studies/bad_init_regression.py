"""A deep thin net with a bad initialization, with and without batch normalization.

    python train.py --study=bad_init_regression

Eight hidden layers of ten units learn y = x² - 5 from 2,000 noisy points; their weights start from
N(0, .1²) and their biases at -.2. The controls change one thing each: the bias, the initialization,
and what the moving averages of the nets with BN are made of. An epoch ends with a batch of 16.

The animations of tanh and relu (.gif and .html) show what every layer sees, epoch by epoch. The
nets without BN stay at 690 to 840, those with it come to some 10 to 120, to 50 with exact
statistics.
"""

import statistics
from typing import Mapping, Tuple

from bn_keras import stats
from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test

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
        for name, settings in (
            ("momentum .99", {"momentum": 0.99}), ("whole batches", {"last_batch": "drop"}),
        ):
            arms[f"{activation} batch, {name}"] = {**arms[f"{activation} batch"], **settings}
    return arms


def with_averages_cost(results):
    """The metrics of each run, and how much its moving averages add to the loss of exact ones."""
    found = []
    for run in results:
        metrics, exact = dict(run.metrics), run.metrics.get("test_loss_population_statistics")
        if None not in (metrics["test_loss"], exact):
            metrics["times_exact_loss"] = metrics["test_loss"] / exact
        found.append(Row(run.config.arm_name, run.config.seed, metrics))
    return found


LAYER_COLUMNS: Tuple[Tuple[str, str, str, Mapping[int, str]], ...] = (
    # heading, arm, metric of a layer, figures found before by layer
    ("tanh, no BN: deviation at the start", "tanh none", "start_std", {1: ".33", 8: "5e-5"}),
    ("tanh, no BN: saturated at the end", "tanh none", "end_saturated_units", {}),
    ("tanh, BN: saturated at the end", "tanh batch", "end_saturated_units", {}),
    ("relu, no BN: dead at the start", "relu none", "start_dead_units",
     {1: ".14", 2: ".86", 3: "1"}),
    ("relu, bias 0: dead at the start", "relu none, zero bias", "start_dead_units", {}),
    ("relu, BN: dead at the end", "relu batch", "end_dead_units", {}),
)


def layers(rows):
    """A table of what every hidden layer hands on, medians over seeds."""
    cells = []
    for layer in range(1, 9):
        line = [str(layer)]
        for _, arm, metric, before in LAYER_COLUMNS:
            found = [row.metrics.get(f"{metric}_layer_{layer}") for row in rows if row.arm == arm]
            known = [value for value in found if value is not None]
            shown = stats.short(statistics.median(known)) if known else "–"
            line.append(f"{shown} ({before[layer]})" if layer in before else shown)
        cells.append(line)
    return [(("layer (before)", *(column[0] for column in LAYER_COLUMNS)), cells)]


@STUDIES.register("bad_init_regression")
def bad_init_regression():
    """Study 4: what BN does for a net that is badly initialized."""
    return Study(
        question="Does BN rescue a badly initialized net, and what was wrong with it?",
        source=TUTORIAL,
        duration="55 s",
        expected="mean squared error 690 to 840 without BN, under 250 with it",
        base={
            # x as it is: the scale of pixels would shrink the signal before the net does.
            "dataset": "quadratic", "pixels": "raw", "validation_size": 200,
            "momentum": 0.5, "epsilon": 1e-5, "last_batch": "keep",
            "optimizer": "adam", "learning_rate": 0.03, "batch_size": 64, "steps": 384,
            "log_interval": 32, "eval_interval": 32, "curve_size": 200, "capture": True,
        },
        arms=_arms(),
        metrics=("test_loss", "test_loss_population_statistics", "times_exact_loss"),
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
                effect=(
                    Test("test_loss", "relu none", "at least", 780),
                    Test("end_dead_units_layer_3", "relu none", "at least", 1),
                ),
                cause=(
                    Test("test_loss", "relu none, zero bias", "at most", 200),
                    Test("start_dead_units_layer_3", "relu none, zero bias", "at most", 0.9),
                ),
                otherwise="it stays dead with a bias of 0 in some seeds",
            ),
            Claim(
                "with He's initialization the relu net learns without BN",
                "He et al. 2015",
                effect=(Test("test_loss", "relu none, He", "at most", 60),),
            ),
            Claim(
                "the initialization saturates the tanh units",
                TUTORIAL,
                effect=(Test("start_saturated_units", "tanh none", "at least", 0.1),),
            ),
            Claim(
                "at the start the tanh net's signal vanishes; saturation comes with training",
                "this toolkit",
                effect=(
                    Test("start_std_layer_8", "tanh none", "at most", "tanh none, He", factor=0.01),
                    Test("start_saturated_units", "tanh none", "at most", 0),
                    Test("end_saturated_units", "tanh none", "at least", 0.5),
                ),
            ),
            Claim(
                "evaluated at Keras's default momentum of .99, the same weights are no worse",
                "this toolkit",
                effect=tuple(
                    Test("test_loss", f"{activation} batch, momentum .99", "at most",
                         f"{activation} batch", factor=1.5) for activation in ("tanh", "relu")
                ),
            ),
            Claim(
                "at momentum .5 a small last batch costs more than whole batches do, measured "
                "against exact statistics of the same weights",
                "this toolkit",
                effect=tuple(
                    Test("times_exact_loss", f"{activation} batch", "at least",
                         f"{activation} batch, whole batches", factor=1.1)
                    for activation in ("tanh", "relu")
                ),
            ),
            Claim(
                "with BN and exact population statistics the relu net has learned the parabola",
                "this toolkit",
                effect=(Test("test_loss_population_statistics", "relu batch", "at most", 60),),
            ),
        ),
        reported={
            ("tanh none", "test_loss"): "685 to 711",
            ("tanh batch", "test_loss"): "45 to 245",
            ("tanh batch", "test_loss_population_statistics"): "40 to 50",
            ("relu batch", "test_loss_population_statistics"): "8 to 20",
            ("relu none", "test_loss"): "824 to 854",
            ("relu batch", "test_loss"): "10 to 106",
            ("relu none, zero bias", "test_loss"): "7 to 17 in 6 of 7",
            ("tanh batch, momentum .99", "test_loss"): "1046 to 2451",
            ("relu batch, momentum .99", "test_loss"): "77 to 2499",
        },
        picture="loss_over_steps",
        animations={
            activation: (f"{activation} batch", f"{activation} none")
            for activation in ("tanh", "relu")
        },
        # Whole batches alone: each size of a batch is compiled anew.
        quick={"steps": 62, "last_batch": "drop", "log_interval": 31, "eval_interval": 31},
        quick_seeds=1,
        quick_arms=("tanh none", "relu none", "relu batch"),
        seeds=5,
        derive=with_averages_cost,
        tables=layers,
    )
