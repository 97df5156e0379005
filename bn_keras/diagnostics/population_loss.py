"""The loss with exact population statistics: what the weights can do."""

from typing import Optional

import numpy as np

from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.registry import PROBES
from bn_keras.surgery.recalibrate import recalibrated
from bn_keras.surgery.statistics import batch_normalizers

TRIED = 2  # examples


@PROBES.register("population_loss", metrics={
    "test_loss_population_statistics": ("test loss, exact statistics", "", "high"),
})
class PopulationLoss(Probe):
    """Test loss of a copy whose statistics are those of all training examples."""

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        if batch_normalizers(nets.net):  # what cannot be recalibrated is told before it is trained
            recalibrated(nets.net, nets.inputs(nets.splits.train.first(TRIED).images), finite=False)

    def at_end(self) -> Values:
        nets, test = self.nets, self.nets.splits.test
        if not batch_normalizers(nets.net):
            return {}
        inputs = nets.inputs(nets.splits.train.images)
        exact = recalibrated(nets.net, inputs, finite=False)  # a run of the stack may have diverged
        forward = nets.as_stack(lambda inputs: exact(inputs, training=False))
        outputs = nets.predict(test.images, forward)
        labels = np.repeat(test.labels[:, None], nets.runs, axis=1)
        losses = nets.task.losses(labels, outputs)
        return {"test_loss_population_statistics": np.mean(losses, 0)}
