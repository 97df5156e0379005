"""The MNIST CNN with dropout of the TensorFlow 1 blogs, with and without `--is_bn`.

    python train.py --study=mnist_cnn_dropout

Adam at .002, batches of 64, 800 steps, moving averages with a decay of .99. The weights of the net
with BN are evaluated twice: with the population statistics, and as the blog's script does it, with
batch statistics behind the dense layers and a convolution whose moving averages were never updated.

Takes 7 min on 2 cores. Both nets end at .98; the loss of the net with BN is ten times as high at
least. Evaluated as the blog writes it, the net with BN predicts the same class for every image fed
alone.

Besides the report, it writes `with_bn.txt` and `without_bn.txt` as that script does: for every ten
steps a line with the loss and accuracy of the training batch, of the first seed.
"""

from bn_keras.registry import STUDIES
from bn_keras.study import Claim, Comparison, Study, View

BLOG = "a TensorFlow 1 blog on an MNIST CNN with BN and dropout (flag --is_bn)"
AS_WRITTEN = "batch, as written"
STEPS = (50, 100, 200, 400)


def _evaluated(evaluation: str, curve: str) -> dict[str, str]:
    """Figures of one evaluation, over the same images in both."""
    return {
        **{f"accuracy_at_{step}": f"at('{curve}', {step})" for step in STEPS},
        "accuracy_in_one_batch": f"metric('pitfall/{evaluation}/whole')",
        "accuracy_one_by_one": f"metric('pitfall/{evaluation}/1')",
        "loss_in_one_batch": f"metric('pitfall/{evaluation}/loss')",
    }


@STUDIES.register("mnist_cnn_dropout", metrics={
    "accuracy_in_one_batch": ("accuracy, images in one batch", "", "low"),
    "accuracy_one_by_one": ("accuracy, images one by one", "", "low"),
    "loss_in_one_batch": ("loss, images in one batch", "", "high"),
})
def mnist_cnn_dropout() -> Study:
    """A CNN with dropout, with and without BN, at a rate that both can take."""
    return Study(
        question="What does BN change where the net learns without it, too?",
        source=BLOG,
        duration="7 min",
        expected="equal accuracy at the end; BN ahead at once in training, and behind in loss; as "
        "the blog evaluates it, one class for every image fed alone",
        base={
            "model": "mnist_cnn", "optimizer": "adam", "learning_rate": 0.002, "batch_size": 64,
            "steps": 800, "momentum": 0.99, "log_interval": 10, "eval_interval": 50,
            "curve_size": 1000,
        },
        arms={
            "none": {"normalizer": "none", "measure": ("pitfalls:correct",)},
            "batch": {
                "normalizer": "batch",
                "measure": (
                    "pitfalls:correct", "pitfalls:as_written", "pitfall_curve:as_written",
                ),
            },
        },
        columns=(
            "train_accuracy_at_10", *(f"accuracy_at_{step}" for step in STEPS), "test_accuracy",
            "accuracy_in_one_batch", "accuracy_one_by_one", "loss_in_one_batch",
        ),
        derived={
            "train_accuracy_at_10": "at('accuracy/train', 10)",
            **_evaluated("correct", "accuracy/validation"),
        },
        views={
            AS_WRITTEN: View("batch", _evaluated("as_written", "accuracy/validation_as_written")),
        },
        claims=(
            Claim(
                "the net with BN converges faster: on the training batches it is .3 ahead after "
                "10 steps",
                BLOG,
                expected="holds",
                effect=(
                    Comparison("train_accuracy_at_10", "batch", "at least", "none", margin=0.3),
                ),
            ),
            Claim(
                "after 50 steps it is ahead on the validation set as well, by two points at least",
                BLOG,
                expected="does not hold",
                effect=(Comparison("accuracy_at_50", "batch", "at least", "none", margin=0.02),),
            ),
            Claim(
                "its loss is lower at the end, by a tenth at least",
                BLOG,
                expected="does not hold",
                effect=(Comparison("loss_in_one_batch", "batch", "at most", "none", factor=0.9),),
            ),
            Claim(
                "evaluated with its population statistics, it predicts single images as well",
                "Ioffe & Szegedy (2015), algorithm 2",
                expected="holds",
                effect=(Comparison("accuracy_one_by_one", "batch", "at least", 0.95),),
            ),
            Claim(
                "evaluated as the blog does it, the same weights are as good on images in one "
                "batch, and predict the same class for every image fed alone",
                "this toolkit",
                expected="holds",
                effect=(
                    Comparison("accuracy_in_one_batch", AS_WRITTEN, "at least", "batch",
                               margin=-0.02),
                    Comparison("accuracy_one_by_one", AS_WRITTEN, "at most", 0.25),
                ),
            ),
        ),
        reported={
            ("batch", "train_accuracy_at_10"): ".85 to .88",
            ("none", "train_accuracy_at_10"): ".18 to .37",
            ("batch", "accuracy_at_50"): ".386 to .863",
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
        figures=(
            "curve:accuracy/train", "curve:accuracy/validation",
            "curve:accuracy/validation_as_written",
        ),
        files=("loss_and_accuracy_pairs",),
        quick={"steps": 50, "train_size": 10_000, "test_size": 1000, "validation_size": 1000,
               "eval_interval": 50},
    )
