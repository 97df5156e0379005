"""The normalizer `batch`: this package's BatchNorm."""

import keras

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("batch", channelwise=True)
def batch(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Batch normalization with statistics over the batch and all positions of a channel."""
    return BatchNorm(momentum=momentum, epsilon=epsilon, name=name, dtype=dtype)
