"""The normalizer `group`: group normalization, each image by itself, channels in groups."""

import math
from typing import Optional, Sequence

import keras

from bn_keras.registry import NORMALIZERS

PAPER_GROUPS = 32
LEAST = 16  # channels of a group where nothing else is in it: the paper's other setting


@keras.saving.register_keras_serializable(package="bn_keras")
class GroupNorm(keras.layers.GroupNormalization):
    """Keras's GroupNormalization, with `groups` as a wish: Wu & He (2018).

    Built, it has the greatest common divisor of `groups` and the number of channels, so that one
    setting, such as the paper's 32, fits layers of any width. Behind a dense layer, where a group
    has no positions to average over, it has at least 16 channels, or all: a group of one would be
    constant, and one of two would keep a sign.

    Args:
        *args, **kwargs: as for keras.layers.GroupNormalization.
    """

    groups: int

    def build(self, input_shape: Sequence[Optional[int]]) -> None:
        channels = input_shape[self.axis]
        if channels is not None:  # else Keras's own error
            groups = self.groups
            if len(input_shape) == 2:
                groups = min(groups, max(1, channels // LEAST))
            self.groups = math.gcd(channels, groups)
        super().build(input_shape)


@NORMALIZERS.register("group")
def group(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Wu & He (2018), with the paper's 32 groups, or as many as the channels allow."""
    return GroupNorm(groups=PAPER_GROUPS, epsilon=epsilon, name=name, dtype=dtype)
