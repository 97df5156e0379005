"""The normalizer `dyt`: no statistics at all, a tanh in their place.

Zhu, Chen, He, LeCun & Liu (2025), "Transformers without Normalization", Dynamic Tanh:

    y = gamma * tanh(alpha * x) + beta

with one alpha for the layer, and gamma and beta of each channel.
"""

from typing import Any

import keras
from keras import ops

from bn_keras.normalizers.instance import Shape, fixed_channels
from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class DynamicTanh(keras.layers.Layer):
    """Squashes every value by itself: y = gamma * tanh(alpha * x) + beta.

    >>> import numpy as np
    >>> np.round(DynamicTanh()(np.array([[1.0, -100.0]], "float32")).numpy().ravel(), 2)
    array([ 0.46, -1.  ], dtype=float32)

    Args:
        alpha: where alpha starts; .5 is the paper's choice for all but language models.
        **kwargs: name, dtype and others of a Keras layer.
    """

    def __init__(self, alpha: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = alpha
        self.supports_masking = True
        self.autocast = False  # alpha is one number for all values, and so wants float32

    def build(self, input_shape: Shape) -> None:
        channels = fixed_channels(self, input_shape)
        self.alpha = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(self.start), name="dyt_alpha",
            autocast=False,
        )
        self.gamma = self.add_weight(
            shape=(channels,), initializer="ones", name="gamma", autocast=False
        )
        self.beta = self.add_weight(
            shape=(channels,), initializer="zeros", name="beta", autocast=False
        )

    def call(self, inputs: Any) -> Any:
        """Applies the tanh, scales and shifts."""
        wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        alpha, gamma, beta = (
            ops.cast(weight, wide.dtype) for weight in (self.alpha, self.gamma, self.beta)
        )
        return ops.cast(ops.tanh(alpha * wide) * gamma + beta, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.start}


@NORMALIZERS.register("dyt")
def dyt(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Zhu et al. (2025): gamma * tanh(alpha x) + beta; `momentum` and `epsilon` mean nothing."""
    return DynamicTanh(name=name, dtype=dtype)
