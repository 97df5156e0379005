"""The normalizer `filter_response`: each channel of each example, with an activation of its own.

Singh & Krishnan (2020), "Filter Response Normalization Layer: Eliminating Batch Dependence in the
Training of Deep Neural Networks":

    nu² = mean of x² over the positions of one channel of one example
    y = gamma * x / sqrt(nu² + epsilon) + beta
    z = max(y, tau)

The last line, with a learned threshold of each channel, is the thresholded linear unit (TLU).
"""

from typing import Any, Optional

import keras
from keras import ops

from bn_keras.normalizers.instance import (
    Shape,
    fixed_channels,
    mean_over_positions,
    one_position,
)
from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class FilterResponseNorm(keras.layers.Layer):
    """Divides each channel of each example by its root mean square, then applies the TLU.

    Training and inference are the same; there are no moving statistics.

    With one position only (dense layers, images of one pixel) the mean is x² itself, and y is
    little more than the sign of x. As the paper does there, epsilon is then learned: `epsilon` +
    |e|, where e, one of each channel, starts at 1e-4.

    >>> import numpy as np
    >>> x = np.array([[[1.0], [-3.0]]], "float32")
    >>> np.round(FilterResponseNorm(threshold=False)(x).numpy().ravel(), 2)
    array([ 0.45, -1.34], dtype=float32)

    Args:
        epsilon: added to nu².
        threshold: whether the TLU follows; tau starts at 0, which is relu.
        **kwargs: name, dtype and others of a Keras layer.

    Call arguments:
        inputs: shape (batch, positions..., channels).
        mask: False leaves a position out of the mean.
    """

    center = True  # beta does the work of a bias in front

    def __init__(self, epsilon: float = 1e-6, threshold: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.threshold = epsilon, threshold
        self.supports_masking = True
        self.autocast = False  # squares overflow float16

    def build(self, input_shape: Shape) -> None:
        channels = fixed_channels(self, input_shape)

        def weight(name: str, start: float) -> Any:
            return self.add_weight(
                shape=(channels,), initializer=keras.initializers.Constant(start), name=name,
                autocast=False,
            )

        self.gamma, self.beta = weight("gamma", 1.0), weight("beta", 0.0)
        self.tau = weight("tau", 0.0) if self.threshold else None
        self.learned_epsilon = weight("epsilon", 1e-4) if one_position(input_shape) else None

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Divides, scales, shifts and cuts off at the threshold."""
        wide = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))

        def cast(weight: Any) -> Any:
            return ops.cast(weight, wide.dtype)

        if self.learned_epsilon is not None:
            scale = ops.square(wide) + (self.epsilon + ops.abs(cast(self.learned_epsilon)))
        else:
            scale = mean_over_positions(ops.square(wide), mask) + self.epsilon
        outputs = wide * (ops.rsqrt(scale) * cast(self.gamma)) + cast(self.beta)
        if self.tau is not None:
            outputs = ops.maximum(outputs, cast(self.tau))
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon, "threshold": self.threshold}


@NORMALIZERS.register("filter_response", channelwise=True)
def filter_response(
    name: str, *, momentum: float, epsilon: float, dtype: str, activation: Optional[str] = None
) -> keras.Layer:
    """Singh & Krishnan (2020); where an activation follows, the paper's TLU takes its place."""
    return FilterResponseNorm(
        epsilon=epsilon, threshold=activation is not None, name=name, dtype=dtype
    )
