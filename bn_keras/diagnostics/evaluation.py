"""Loss and accuracy on validation and test examples, in inference mode."""

from typing import Any, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from bn_keras.diagnostics.probe import Probe, Values
from bn_keras.loop import Steps
from bn_keras.registry import PROBES

TARGETS = (90, 95, 97, 98)


@PROBES.register("evaluation", always=True, metrics={
    "loss/validation": ("validation loss", "", "high"),
    "accuracy/validation": ("validation accuracy", "", "low"),
    "validation_loss": ("validation loss", "", "high"),
    "validation_accuracy": ("validation accuracy", "", "low"),
    "test_loss": ("test loss", "", "high"),
    "test_accuracy": ("test accuracy", "", "low"),
    "validation_images": ("validation images", "images", None),
    "test_images": ("test images", "images", None),
    "validation_commonest": ("guessing the commonest class, validation", "", None),
    "test_commonest": ("guessing the commonest class, test", "", None),
    "steps_to_90_percent": ("steps to 90 %", "steps", "high"),
    "steps_to_95_percent": ("steps to 95 %", "steps", "high"),
    "steps_to_97_percent": ("steps to 97 %", "steps", "high"),
    "steps_to_98_percent": ("steps to 98 %", "steps", "high"),
})
class Evaluation(Probe):
    """Curves over the first validation images, metrics over all; population statistics.

    A regression has losses alone.
    """

    def start(self) -> Values:
        self._curve: List[Tuple[int, NDArray[Any]]] = []
        return {}

    def during(self, step: int, steps: Steps) -> Values:
        loss, accuracy = self.nets.evaluate(self.nets.curve_set)
        self._curve.append((step, accuracy))
        if self.nets.regression:
            return {"loss/validation": loss}
        return {"loss/validation": loss, "accuracy/validation": accuracy}

    def at_end(self) -> Values:
        splits = self.nets.splits
        found: Dict[str, NDArray[Any]] = {}
        for name, split in (("validation", splits.validation), ("test", splits.test)):
            loss, accuracy = self.nets.evaluate(split)
            found[f"{name}_loss"] = loss
            found[f"{name}_images"] = self._everywhere(len(split))
            if not self.nets.regression:
                found[f"{name}_accuracy"] = accuracy
                commonest = np.bincount(split.labels).max() / len(split)
                found[f"{name}_commonest"] = self._everywhere(commonest)
        if not self.nets.regression:
            for percent in TARGETS:
                found[f"steps_to_{percent}_percent"] = self._steps_to(percent / 100)
        return found

    def _everywhere(self, value: float) -> NDArray[Any]:
        return np.full(self.nets.runs, float(value))

    def _steps_to(self, target: float) -> NDArray[Any]:
        """The first evaluated step at which each run has the accuracy; NaN for never."""
        found = self._everywhere(np.nan)
        for step, accuracy in reversed(self._curve):
            found[accuracy >= target] = step
        return found
