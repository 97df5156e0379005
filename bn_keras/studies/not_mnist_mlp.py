"""Training, inference and three kinds of error: which statistics belong where.

    python train.py --study=not_mnist_mlp [--dataset=notmnist:PATH]

One hidden layer of 1,024 with BN in front of it and behind it, weights N(0, 1), a heavy L2 penalty.
Training, validation and test error are all measured in inference mode, with population statistics;
batch statistics belong to the training step alone.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test, values_at

THREAD = "a question-and-answer thread on BN in TensorFlow"
BATCH_STATISTICS = "validation_accuracy_batch_statistics"
NEVER_UPDATED, WITHOUT_BN = "pitfall/never_updated/whole", "pitfall/without_bn/whole"


def rows(results):
    """The metrics of each run and three more.

    These are the accuracy after 500 steps; the penalty's part in the loss; and by how much the
    validation accuracy is higher with population statistics than with those of the batch: what an
    evaluation loses of what the weights can.
    """
    found = []
    for run in results:
        metrics = {**run.metrics, **values_at(run, "accuracy/validation", [500], "accuracy")}
        penalty, loss = metrics["penalty"], _last(run, "loss/train")
        if None not in (penalty, loss):
            metrics["penalty_share_of_loss"] = penalty / (penalty + loss)
        # Both are of the images of the curve.
        inference, batch = _last(run, "accuracy/validation"), metrics[BATCH_STATISTICS]
        if None not in (inference, batch):
            metrics["inference_minus_batch"] = inference - batch
        found.append(Row(run.config.arm_name, run.config.seed, metrics))
    return found


def _last(run, curve):
    points = run.curves.get(curve)
    return points[-1][1] if points else None


@STUDIES.register("not_mnist_mlp")
def not_mnist_mlp():
    """Study 5: training, validation and test error of one MLP."""
    return Study(
        question="What does BN gain here, and which momentum does its evaluation need?",
        source=THREAD,
        duration="4 min",
        expected="BN ahead at step 500, by a point at the end; a momentum of .999 evaluates worse",
        base={
            "model": "not_mnist_mlp", "pixels": "centered", "optimizer": "sgd",
            "learning_rate": 0.5, "batch_size": 128, "steps": 3000, "batch_order": "fixed",
            "log_interval": 500, "eval_interval": 500, "curve_size": 5000, "momentum": 0.9,
        },
        # Runs whose pitfalls are measured are trained alone, and only these tell their penalty.
        arms={
            "none": {"normalizer": "none", "pitfalls": "correct"},
            "batch": {"normalizer": "batch", "pitfalls": "correct,never_updated,without_bn"},
            "batch, momentum .999": {
                "normalizer": "batch", "momentum": 0.999, "pitfalls": "correct",
            },
            "batch, momentum .999, no penalty": {
                "normalizer": "batch", "momentum": 0.999, "pitfalls": "correct",
                "model": "not_mnist_mlp_no_penalty",
            },
            "the question's layer": {
                "normalizer": "batch", "momentum": 0.5, "dtype_policy": "float64",
                "model": "not_mnist_mlp_dense_bn", "pitfalls": "correct",
            },
        },
        metrics=(
            "accuracy_at_500", "test_accuracy", "inference_minus_batch", NEVER_UPDATED, WITHOUT_BN,
            "penalty_share_of_loss",
        ),
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
                "a momentum of .999 evaluates worse, since its initial variance of 1 still weighs "
                "5 % after 3,000 steps",
                "the usual explanation",
                effect=(
                    Test("inference_minus_batch", "batch, momentum .999", "at most", -0.02),
                ),
                cause=(
                    Test("inference_minus_batch", "batch, momentum .999, no penalty", "at most",
                         -0.02),
                ),
                otherwise="the penalty shrinks the weights throughout, and the hidden layer's "
                "moving variance cannot follow; without it the same momentum costs less",
            ),
            Claim(
                "the question's layer (float64, momentum .5, behind the dense layer) infers as "
                "well as it trains",
                THREAD,
                effect=(Test("inference_minus_batch", "the question's layer", "at least", -0.01),),
            ),
            Claim(
                "an evaluation graph without BN, or with statistics that were never updated, ruins "
                "the net",
                THREAD,
                effect=(
                    Test(WITHOUT_BN, "batch", "at most", 0.6),
                    Test(NEVER_UPDATED, "batch", "at most", 0.6),
                ),
            ),
        ),
        reported={
            ("none", "accuracy_at_500"): ".842", ("batch", "accuracy_at_500"): ".919",
            ("none", "test_accuracy"): ".954 to .957", ("batch", "test_accuracy"): ".956 to .957",
            ("batch, momentum .999", "test_accuracy"): ".70 to .78",
            ("batch", NEVER_UPDATED): ".26 to .42", ("batch", WITHOUT_BN): ".33 to .45",
            ("batch", "penalty_share_of_loss"): "most",
        },
        picture="accuracy_over_steps",
        quick_seeds=1,
        quick={"steps": 250, "log_interval": 125, "eval_interval": 125, "train_size": 20_000,
               "validation_size": 1000, "test_size": 1000},
        derive=rows,
    )
