"""Share of examples whose loss has a gradient of exactly zero before the first step."""

from typing import Optional

import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import NO_EXAMPLE, take
from bn_keras.registry import PROBES
from bn_keras.surgery.statistics import batch_normalizers


@PROBES.register("no_gradient", metrics={
    "start_no_gradient": ("examples without a gradient at the start", "", "high"),
})
class NoGradient(Probe):
    """Of the first training batch, with batch statistics where the net has them."""

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        self._copy = BatchStatisticsModel(nets.net) if batch_normalizers(nets.net) else None

    def at_start(self) -> Values:
        nets, train = self.nets, self.nets.splits.train
        indices = nets.batches[0]
        indices = indices[(indices != NO_EXAMPLE).all(1)]
        forward = nets.forward
        if self._copy is not None:
            self._copy.refresh()
            forward = nets.as_stack(self._copy)
        outputs = tf.convert_to_tensor(forward(take(train.images, indices)))
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            losses = nets.task.losses(tf.gather(train.labels, indices), outputs)
        gradients = tape.gradient(losses, outputs)
        return {"start_no_gradient": np.mean(np.all(gradients.numpy() == 0, -1), 0)}
