"""The normalizer `layer`: layer normalization, each image by itself."""

import keras

from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("layer")
def layer(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Ba, Kiros & Hinton (2016), over the channels of each position; `momentum` has no meaning."""
    return keras.layers.LayerNormalization(epsilon=epsilon, name=name, dtype=dtype)
