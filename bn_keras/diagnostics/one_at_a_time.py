"""Accuracy on single images: with right statistics it is that of the same images in a batch."""

from bn_keras.diagnostics.probe import Probe, Values
from bn_keras.registry import PROBES

IMAGES = 100


@PROBES.register("one_at_a_time", metrics={
    "one_at_a_time_accuracy": ("accuracy on 100 test images, one by one", "", "low"),
})
class OneAtATime(Probe):
    """Predicts the first 100 test images singly; nothing for a regression."""

    def at_end(self) -> Values:
        if self.nets.regression:
            return {}
        _, accuracy = self.nets.evaluate(self.nets.splits.test.first(IMAGES), batch_size=1)
        return {"one_at_a_time_accuracy": accuracy}
