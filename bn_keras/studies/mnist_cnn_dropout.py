"""The MNIST CNN with dropout of the TensorFlow 1 blogs, with and without `--is_bn`.

    python train.py --study=mnist_cnn_dropout

Adam at .002, batches of 64, 800 steps, moving averages with a decay of .99. The weights of the net
with BN are evaluated twice: with the population statistics, and as the blog's script does it, with
batch statistics behind the dense layers and a convolution whose moving averages were never updated.

Besides the report, it writes `with_bn.txt` and `without_bn.txt` as that script does: for every ten
steps a line with the loss and accuracy of the training batch, of the first seed.
"""

from bn_keras.registry import STUDIES
from bn_keras.studies import Claim, Row, Study, Test, values_at

BLOG = "a TensorFlow 1 blog on BN and dropout"
WRITTEN = "as_written"
AS_WRITTEN = "batch, as written"
FILES = {"batch": "with_bn.txt", "none": "without_bn.txt"}


def rows(results):
    """The metrics of each run, and accuracies at the steps that the claims are about.

    A run that was evaluated as written, too, makes a second row: other figures of the same weights.
    """
    found = []
    for run in results:
        arm, seed = run.config.arm_name, run.config.seed
        metrics = {
            **run.metrics, **values_at(run, "accuracy/train", [10], "train_accuracy"),
            **_evaluated(run, "correct", "accuracy/validation"),
        }
        found.append(Row(arm, seed, metrics))
        if run.config.pitfall_curve is not None:
            written = _evaluated(run, WRITTEN, f"accuracy/validation_{WRITTEN}")
            found.append(Row(AS_WRITTEN, seed, written))
    return found


def _evaluated(run, evaluation, curve):
    """What both evaluations measure on the same images."""
    measured = {
        "accuracy_in_one_batch": f"pitfall/{evaluation}/whole",
        "accuracy_one_by_one": f"pitfall/{evaluation}/1",
        "loss_in_one_batch": f"pitfall/{evaluation}/loss",
    }
    return {
        **values_at(run, curve, (50, 100, 200, 400), "accuracy"),
        **{metric: run.metrics[name] for metric, name in measured.items() if name in run.metrics},
    }


def loss_and_accuracy_pairs(results):
    """The two text files: file name to content."""
    texts = {}
    for run in results:
        name = FILES.get(run.config.arm_name)
        if name is None or name in texts:
            continue
        pairs = zip(*(run.curves.get(of, []) for of in ("loss/train", "accuracy/train")))
        texts[name] = "".join(f"{loss} {accuracy}\n" for (_, loss), (_, accuracy) in pairs)
    return texts


@STUDIES.register("mnist_cnn_dropout")
def mnist_cnn_dropout():
    """Study 1: a CNN with dropout, with and without BN, at a rate that both can take."""
    return Study(
        question="What does BN change where the net learns without it, too?",
        source=BLOG,
        duration="4 min",
        expected="equal accuracy at the end; BN ahead at once in training, and behind in loss; as "
        "the blog evaluates it, one answer for every single image",
        base={
            "model": "mnist_cnn", "learning_rate": 0.002, "batch_size": 64, "steps": 800,
            "momentum": 0.99, "log_interval": 10, "eval_interval": 50, "curve_size": 1000,
        },
        arms={
            "none": {"normalizer": "none", "pitfalls": "correct"},
            "batch": {
                "normalizer": "batch", "pitfalls": f"correct,{WRITTEN}", "pitfall_curve": WRITTEN,
            },
        },
        metrics=(
            "train_accuracy_at_10", "accuracy_at_50", "accuracy_at_100", "accuracy_at_200",
            "accuracy_at_400", "test_accuracy", "accuracy_in_one_batch", "accuracy_one_by_one",
            "loss_in_one_batch",
        ),
        claims=(
            Claim(
                "the net with BN converges faster, as the training batches show it",
                BLOG,
                effect=(
                    Test("train_accuracy_at_10", "batch", "at least", "none", margin=0.3),
                ),
            ),
            Claim(
                "it is ahead on the validation set as well, early on",
                BLOG,
                effect=(Test("accuracy_at_50", "batch", "at least", "none"),),
            ),
            Claim(
                "its loss is lower at the end",
                BLOG,
                effect=(Test("loss_in_one_batch", "batch", "at most", "none"),),
            ),
            Claim(
                "evaluated with its population statistics, it predicts single images as well",
                "Ioffe & Szegedy (2015), algorithm 2",
                effect=(Test("accuracy_one_by_one", "batch", "at least", 0.95),),
            ),
            Claim(
                "evaluated as the blog does it, the same weights are as good on images in one "
                "batch, and give single images one answer",
                "this toolkit",
                effect=(
                    Test("accuracy_in_one_batch", AS_WRITTEN, "at least", "batch", margin=-0.02),
                    Test("accuracy_one_by_one", AS_WRITTEN, "at most", 0.25),
                ),
            ),
        ),
        reported={
            ("batch", "train_accuracy_at_10"): ".85 to .88",
            ("none", "train_accuracy_at_10"): ".18 to .37",
            ("batch", "accuracy_at_100"): ".952", ("none", "accuracy_at_100"): ".946",
            ("batch", "accuracy_at_200"): ".940", ("none", "accuracy_at_200"): ".962",
            ("batch", "accuracy_at_400"): ".979", ("none", "accuracy_at_400"): ".976",
            ("batch", "test_accuracy"): ".983 to .986", ("none", "test_accuracy"): ".981 to .984",
            ("batch", "loss_in_one_batch"): ".142",
            ("none", "loss_in_one_batch"): ".0114",
            (AS_WRITTEN, "accuracy_at_100"): ".965", (AS_WRITTEN, "accuracy_at_200"): ".974",
            (AS_WRITTEN, "accuracy_at_400"): ".979",
            (AS_WRITTEN, "accuracy_in_one_batch"): ".986 to .987",
            (AS_WRITTEN, "loss_in_one_batch"): ".141",
            (AS_WRITTEN, "accuracy_one_by_one"): ".14",
            ("batch", "accuracy_one_by_one"): ".98 to 1", ("none", "accuracy_one_by_one"): "1",
        },
        picture="accuracy_over_tens_of_steps",
        quick={"steps": 50, "train_size": 10_000, "test_size": 1000, "validation_size": 1000,
               "eval_interval": 50},
        quick_seeds=1,
        derive=rows,
        files=loss_and_accuracy_pairs,
    )
