"""Training, inference and three kinds of error: which statistics belong where.

    python train.py --study=not_mnist_mlp [--dataset=notmnist:PATH]

One hidden layer of 1,024 with BN in front of it and behind it, weights N(0, 1), a heavy L2 penalty.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test, value_at

THREAD = "a question-and-answer thread on BN in TensorFlow"


def rows(results):
    """The metrics of each run, and the validation accuracy after 500 steps."""
    return [
        Row(run.config.arm_name, run.config.seed,
            {**run.metrics, "accuracy_at_500": value_at(run, "accuracy/validation", 500)})
        for run in results
    ]


@STUDIES.register("not_mnist_mlp")
def not_mnist_mlp():
    """Study 5: training, validation and test error of one MLP."""
    return Study(
        question="What does BN gain here, and which momentum does its evaluation need?",
        source=THREAD,
        duration="3 min",
        expected="BN ahead at step 500, by a point at the end; a momentum of .999 evaluates worse",
        base={
            "model": "not_mnist_mlp", "pixels": "centered", "optimizer": "sgd",
            "learning_rate": 0.5, "batch_size": 128, "steps": 3000, "batch_order": "fixed",
            "log_interval": 500, "eval_interval": 500, "curve_size": 5000, "momentum": 0.9,
        },
        arms={
            "none": {"normalizer": "none"},
            "batch": {"normalizer": "batch"},
            "batch, momentum .999": {"normalizer": "batch", "momentum": 0.999},
        },
        metrics=("accuracy_at_500", "validation_accuracy", "test_accuracy"),
        claims=(
            Claim(
                "the net with BN is ahead early on",
                THREAD,
                effect=(Test("accuracy_at_500", "batch", "at least", "none", margin=0.02),),
            ),
            Claim(
                "BN ends better",
                THREAD,
                effect=(Test("test_accuracy", "batch", "at least", "none", margin=0.005),),
            ),
            Claim(
                "a decay of .999 is a safe choice",
                THREAD,
                effect=(
                    Test("test_accuracy", "batch, momentum .999", "at least", "batch",
                         margin=-0.02),
                ),
            ),
        ),
        reported={
            ("none", "accuracy_at_500"): ".842", ("batch", "accuracy_at_500"): ".919",
            ("none", "test_accuracy"): ".954 to .957", ("batch", "test_accuracy"): ".956 to .957",
            ("batch, momentum .999", "test_accuracy"): ".70 to .78",
        },
        picture="accuracy_over_steps",
        quick_seeds=1,
        quick={"steps": 500, "log_interval": 250, "eval_interval": 250},
        derive=rows,
    )
