"""The plain comparison: a net with and without batch normalization, all else equal.

    python train.py

Without flags it trains the MNIST CNN with plain SGD at a learning rate of 3, thirty times the usual
one, for 100 steps and six seeds. That takes about 80 s on 2 cores. With BN each run ends at .94 to
.96; without it no run gets above guessing. `--normalizer=NAME` compares another layer with none at
all, and every other flag changes both arms. More arms take more seeds to tell them apart: seven for
three or four arms, eight for five to seven.
"""

from typing import Sequence

from bn_keras.intervals import fewest_pairs
from bn_keras.own import short
from bn_keras.registry import STUDIES
from bn_keras.study import Study


@STUDIES.register("comparison", normalizers=True)
def comparison(normalizers: Sequence[str] = ("none", "batch")) -> Study:
    """One arm for each normalizer; `none`, where it is among them, is the baseline.

    Args:
        normalizers: registered names, or such as `own.give` gave.
    """
    names = sorted(dict.fromkeys(normalizers), key=lambda name: name != "none")
    return Study(
        question="What does the normalizer change, everything else being equal?",
        source="Ioffe & Szegedy (2015), section 3.3",
        duration="80 s",
        expected="at the default learning rate of 3, batch at .94 to .96 and none at .1",
        base={},  # the defaults of RunConfig are this study's settings
        arms={short(name): {"normalizer": name} for name in names},
        columns=(
            "validation_accuracy", "test_accuracy", "steps_to_90_percent", "one_at_a_time_accuracy",
            "validation_accuracy_batch_statistics",
        ),
        figures=("curve:accuracy/train", "curve:accuracy/validation", "outcomes"),
        quick={"steps": 20, "eval_interval": 10, "train_size": 5000, "validation_size": 500,
               "test_size": 500},
        seeds=fewest_pairs(max(1, len(names) - 1)),  # can decide if all pairs agree
        baseline=short(names[0]),
    )
