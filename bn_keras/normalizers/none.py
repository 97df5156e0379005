"""The normalizer `none`: the arm that everything is compared with."""

import keras

from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("none", channelwise=True)
def none(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Nothing, as a layer of that name, so that both arms show the same places in histograms."""
    return keras.layers.Identity(name=name, dtype=dtype)
