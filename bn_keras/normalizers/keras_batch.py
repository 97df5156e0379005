"""The normalizer `keras_batch`: the layer that comes with Keras, to compare with."""

import keras

from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("keras_batch", channelwise=True)
def keras_batch(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """`keras.layers.BatchNormalization`."""
    return keras.layers.BatchNormalization(
        momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )
