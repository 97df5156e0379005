"""Training batches: loss, accuracy, gradient, and batches that the guards left out."""

import numpy as np

from bn_keras.diagnostics.probe import Probe, Values
from bn_keras.loop import Steps
from bn_keras.registry import PROBES
from bn_keras.surgery.statistics import skipped_batches


@PROBES.register("training", always=True, metrics={
    "loss/train": ("loss of the training batch", "", "high"),
    "accuracy/train": ("accuracy on the training batch", "", "low"),
    "gradient/norm": ("norm of the gradient over all weights", "", None),
    "statistics/skipped_batches": ("batches left out of the moving averages", "batches", "high"),
})
class Training(Probe):
    """Values of the last training step, with batch statistics, as training uses them."""

    every = "log"

    def during(self, step: int, steps: Steps) -> Values:
        found = {"loss/train": steps.loss[-1], "gradient/norm": steps.gradient_norm}
        if not self.nets.regression:
            found["accuracy/train"] = steps.accuracy[-1]
        if self.nets.runs == 1:  # a stack has one layer, and one count, for all of its runs
            found["statistics/skipped_batches"] = np.array([skipped_batches(self.nets.net)])
        return found
