"""The normalizer `instance`: each channel of each example by itself.

Ulyanov, Vedaldi & Lempitsky (2016), "Instance Normalization: The Missing Ingredient for Fast
Stylization":

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

with the mean and the biased variance over the positions of one channel of one example.
"""

from typing import Any, Optional, Sequence

import keras
from keras import ops

from bn_keras.registry import NORMALIZERS

Shape = Sequence[Optional[int]]


def one_position(shape: Shape) -> bool:
    """Whether inputs of this shape, (batch, positions..., channels), have a single position."""
    return all(size == 1 for size in shape[1:-1])


def mean_over_positions(x: Any, mask: Any = None) -> Any:
    """Means of the channels of each example, of shape (batch, 1..., channels).

    Args:
        x: shape (batch, positions..., channels).
        mask: shape (batch, positions...) or its beginning; False leaves a position out. An example
            without a position gets 0.
    """
    axes = list(range(1, len(x.shape) - 1))
    if mask is None:
        return ops.mean(x, axes, keepdims=True)
    missing = [1] * (len(x.shape) - len(mask.shape))
    kept = ops.cast(ops.reshape(mask, [*ops.shape(mask), *missing]), "bool")
    kept = ops.broadcast_to(kept, ops.shape(x))
    # By `where`: zero times the infinity of a position left out would be NaN.
    total = ops.sum(ops.where(kept, x, ops.zeros_like(x)), axes, keepdims=True)
    return total / ops.maximum(ops.sum(ops.cast(kept, x.dtype), axes, keepdims=True), 1)


def _mean_of_rows(x: Any, mask: Any) -> Any:
    return ops.mean(x, -1, keepdims=True)


@keras.saving.register_keras_serializable(package="bn_keras")
class InstanceNorm(keras.layers.Layer):
    """Normalizes each channel of each example over its positions.

    Training and inference are the same; there are no moving statistics. Keras's
    GroupNormalization(groups=-1) computes this as well, but counts masked positions, and loses
    digits where the mean is far from zero.

    With one position only (dense layers, images of one pixel) a channel has a single value, which
    would become 0. The statistics are then those over all channels: layer normalization.

    >>> import numpy as np
    >>> x = np.array([[[1.0], [3.0]], [[10.0], [30.0]]], "float32")
    >>> np.round(InstanceNorm()(x).numpy().ravel(), 2).tolist()
    [-1.0, 1.0, -1.0, 1.0]

    Args:
        epsilon: added to the variance.
        **kwargs: name, dtype and others of a Keras layer.

    Call arguments:
        inputs: shape (batch, positions..., channels).
        mask: False leaves a position out of the statistics.
    """

    center = True  # beta does the work of a bias in front

    def __init__(self, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.supports_masking = True
        self.autocast = False  # statistics want float32

    def build(self, input_shape: Shape) -> None:
        channels = fixed_channels(self, input_shape)
        self.gamma = self.add_weight(
            shape=(channels,), initializer="ones", name="gamma", autocast=False
        )
        self.beta = self.add_weight(
            shape=(channels,), initializer="zeros", name="beta", autocast=False
        )

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Normalizes, scales and shifts."""
        wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        mean = _mean_of_rows if one_position(wide.shape) else mean_over_positions
        centered = wide - mean(wide, mask)
        # Far from zero the mean was rounded; what is left of it costs one more pass.
        centered = centered - mean(centered, mask)
        variance = mean(ops.square(centered), mask)
        gamma, beta = (ops.cast(weight, wide.dtype) for weight in (self.gamma, self.beta))
        outputs = centered * (ops.rsqrt(variance + self.epsilon) * gamma) + beta
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def fixed_channels(layer: keras.Layer, input_shape: Shape) -> int:
    """The size of the last axis.

    Raises:
        ValueError: it is not fixed, or there is no axis of examples in front of it.
    """
    if len(input_shape) < 2 or input_shape[-1] is None:
        raise ValueError(
            f"{type(layer).__name__}: received inputs of shape {tuple(input_shape)}; expected "
            "(batch, channels) or (batch, positions..., channels), with a fixed number of channels."
        )
    return input_shape[-1]


@NORMALIZERS.register("instance")
def instance(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Ulyanov et al. (2016), over the positions of each channel; a dense layer's row as a whole."""
    return InstanceNorm(epsilon=epsilon, name=name, dtype=dtype)
