"""Exact population statistics: what the moving averages only follow, computed over all examples.

A reader recalibrates a trained model to see how it would do with right statistics: the weights stay
as they are, so a better score afterwards is the moving averages' fault and not the training's.
"""

import contextlib

import keras
import numpy as np

from bn_keras.batch_norm import functional
from bn_keras.surgery.statistics import batch_normalizers


def recalibrate(model, inputs, batch_size=1000):
    """A copy of a model whose population statistics are those of the given examples.

    Layer by layer in the order of the calls, each behind layers that are done already: the moving
    mean and the (biased) moving variance become mean and variance of what goes into the layer, in
    inference mode. Masked positions do not count. The result does not depend on `batch_size`.

    Args:
        model: a functional or Sequential keras.Model, nested models included.
        inputs: array of examples, (n, ...); the training set.
        batch_size: how many go through the model at once.

    Returns:
        A new model with the same weights and names, not compiled; equal to the given one where that
        has no batch normalization.

    Raises:
        ValueError: there are no examples, or the model is neither functional nor Sequential.
    """
    if not len(inputs):
        raise ValueError("recalibrate: received 0 examples; expected at least 1.")
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer in _in_order_of_calls(copy, inputs[:1]):
        seen = _Moments(layer)
        with _watched(layer, seen):
            for start in range(0, len(inputs), batch_size):
                copy(inputs[start:start + batch_size], training=False)
        layer.moving_mean.assign(seen.mean)
        layer.moving_variance.assign(seen.variance)
    return copy


def _in_order_of_calls(model, inputs):
    """The normalizing layers, each once, as they come when the model is called."""
    called = []
    with contextlib.ExitStack() as stack:
        for layer in batch_normalizers(model):
            stack.enter_context(_watched(layer, lambda *_, layer=layer: called.append(layer)))
        model(inputs, training=False)
    return list(dict.fromkeys(called))


class _Moments:
    """Mean and biased variance of every channel, over any number of batches, in float64.

    Two sets of values are joined as in Chan, Golub & LeVeque (1983): the squared distances add up,
    and so does what the distance of the two means contributes.
    """

    def __init__(self, layer):
        self._axis = layer.axis
        self._count, self.mean, self.variance = 0, 0.0, 0.0

    def __call__(self, inputs, mask=None):
        found = functional.moments(inputs, axis=self._axis, mask=mask)
        mean, variance = (np.asarray(value, np.float64) for value in found)
        count = int(functional.count(inputs, axis=self._axis, mask=mask))
        if not count:
            return
        total = self._count + count
        share = count / total
        distance = mean - self.mean
        self.variance = (
            (1 - share) * self.variance + share * variance + share * (1 - share) * distance**2
        )
        self.mean = self.mean + share * distance
        self._count = total


@contextlib.contextmanager
def _watched(layer, see):
    """Lets `see(inputs, mask)` look at every call of a layer."""
    call = layer.call

    def watching(inputs, *args, mask=None, **kwargs):
        see(inputs, mask)
        # Not every normalizer takes a mask.
        return call(inputs, *args, **kwargs, **({} if mask is None else {"mask": mask}))

    layer.call = watching
    try:
        yield
    finally:
        del layer.call
