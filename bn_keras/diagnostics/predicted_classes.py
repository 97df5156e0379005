"""How many classes a net ever predicts."""

import numpy as np

from bn_keras.diagnostics.probe import Probe, Values
from bn_keras.registry import PROBES


@PROBES.register("predicted_classes", metrics={
    "predicted_classes": ("classes predicted", "classes", "low"),
})
class PredictedClasses(Probe):
    """Classes given to at least one image of the validation curve; nothing for a regression."""

    def at_end(self) -> Values:
        if self.nets.regression:
            return {}
        images = self.nets.curve_set.images
        outputs = self.nets.predict(images)
        guesses = outputs.argmax(-1)
        if outputs.shape[-1] == 1:
            guesses = outputs[..., 0] > self.nets.task.threshold
        return {"predicted_classes": np.array([len(np.unique(run)) for run in guesses.T])}
