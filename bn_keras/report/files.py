"""Text files that a study's report writes as well: a registered function gives them by name.

    @FILES.register("loss_and_accuracy_pairs")
    def loss_and_accuracy_pairs(rows): ...; return {"with_bn.txt": text}
"""

from typing import Sequence

from bn_keras.registry import FILES
from bn_keras.study import Row

NAMES = {"batch": "with_bn.txt", "none": "without_bn.txt"}


@FILES.register("loss_and_accuracy_pairs")
def loss_and_accuracy_pairs(rows: Sequence[Row]) -> dict[str, str]:
    """The files that TensorFlow 1 blogs draw their pictures from.

    A line for every point of the training curves, with the batch's loss and accuracy; of the first
    seed of the arms `batch` and `none`.
    """
    texts: dict[str, str] = {}
    for row in rows:
        name = NAMES.get(row.arm)
        if name is None or name in texts or not row.curves:
            continue
        losses = dict(map(tuple, row.curves.get("loss/train", [])))
        accuracies = dict(map(tuple, row.curves.get("accuracy/train", [])))
        texts[name] = "".join(
            f"{losses[step]} {accuracies[step]}\n" for step in losses if step in accuracies
        )
    return texts
