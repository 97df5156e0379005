"""The normalizer `group`: group normalization, each image by itself, channels in groups."""

import math

import keras

from bn_keras.registry import NORMALIZERS

PAPER_GROUPS = 32


@NORMALIZERS.register("group")
def group(
    channels: int, name: str, *, momentum: float, epsilon: float, dtype: str
) -> keras.Layer:
    """Wu & He (2018), with the paper's 32 groups or the largest divisor that the channels share."""
    groups = math.gcd(channels, PAPER_GROUPS)
    return keras.layers.GroupNormalization(groups=groups, epsilon=epsilon, name=name, dtype=dtype)
