"""Histograms of the inputs, outputs and statistics of every normalizer."""

from typing import Optional

import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.inside import Inside
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.models.blocks import normalizers
from bn_keras.registry import PROBES

IMAGES = 100
MAX_VALUES = 20_000  # a histogram shows no more of a million values, and costs 50 times as much
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


@PROBES.register("histograms")
class Histograms(Probe):
    """Values at every normalizer, in inference mode, over the first validation images.

    The tags are `PLACE/WHAT`, such as `conv2_norm/input`. PLACE is the name that the net gives the
    normalizer, or normalizer_1, normalizer_2 and so on where it gives none. WHAT is input or output
    (evenly spaced values of it, some 20,000), and gamma, beta, moving_mean and moving_variance
    where the normalizer has them.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None):
        super().__init__(nets, argument)
        self._inside = Inside(nets, normalizers(nets.net), "normalizer")

    def histograms(self, step: int) -> Values:
        images = self.nets.inputs(self.nets.splits.validation.first(IMAGES).images)
        ends = iter(self._inside(images))
        values = {}
        for place, layer in zip(self._inside.names, self._inside.layers):
            values[f"{place}/input"] = self.nets.by_run(_thinned(next(ends)))
            values[f"{place}/output"] = self.nets.by_run(_thinned(next(ends)))
            for name in STATISTICS:
                weight = getattr(layer, name, None)
                if weight is not None:
                    values[f"{place}/{name}"] = self.nets.by_run(weight)
        return values


def _thinned(values: tf.Tensor) -> tf.Tensor:
    """Rows (n, channels) of activations (..., channels), evenly spaced, some MAX_VALUES values."""
    rows = tf.reshape(values, [-1, values.shape[-1]])
    # An odd stride meets every place where their number is a power of two.
    return rows[:: (np.prod(values.shape) // MAX_VALUES) | 1]
