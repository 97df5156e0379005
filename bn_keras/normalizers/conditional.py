"""Conditional batch normalization: scale and offset come from outside, with each call.

De Vries et al. (2017), "Modulating early visual processing by language": another network, an
embedding of the class for example, predicts them.
"""

from typing import Any, Optional, Sequence

import keras
from keras import ops

from bn_keras.batch_norm import functional
from bn_keras.batch_norm.functional import Tensor
from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS

Shape = Sequence[Optional[int]]


@keras.saving.register_keras_serializable(package="bn_keras")
class ConditionalBatchNorm(BatchNorm):
    """BatchNorm without a gamma and beta of its own: y = gamma * x_hat + beta as they are passed.

    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]], "float32")
    >>> y = ConditionalBatchNorm()(x, gamma=np.array([[2.0], [5.0]], "float32"), training=True)
    >>> np.round(y.numpy().ravel(), 2).tolist()
    [-2.0, 5.0]

    Args:
        *args, **kwargs: as for BatchNorm, but for `center` and `scale`, which are False.

    Call arguments:
        inputs, training, mask: as for BatchNorm.
        gamma: scale, of shape (batch, channels) for one an example, or (channels,); None means 1.
        beta: offset, likewise; None means 0. What predicts differences from BatchNorm's start
            passes `1 + difference` as gamma.

    Raises:
        ValueError: gamma or beta of another shape.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, center=False, scale=False)  # type: ignore[misc]

    def build(
        self, inputs_shape: Shape, gamma_shape: Optional[Shape] = None,
        beta_shape: Optional[Shape] = None,
    ) -> None:
        super().build(inputs_shape)

    def call(  # type: ignore[override]  # gamma and beta stand next to the inputs
        self, inputs: Any, gamma: Any = None, beta: Any = None, training: Any = None,
        mask: Any = None, update_statistics: Any = True,
    ) -> Any:
        """Normalizes, then scales and shifts as told."""
        outputs = super().call(inputs, training, mask, update_statistics)
        if gamma is None and beta is None:
            return outputs
        wide = ops.cast(outputs, keras.backend.result_type(outputs.dtype, "float32"))
        if gamma is not None:
            wide = wide * self._broadcast("gamma", gamma, wide)
        if beta is not None:
            wide = wide + self._broadcast("beta", beta, wide)
        return ops.cast(wide, outputs.dtype)

    def compute_output_shape(
        self, inputs_shape: Shape, gamma_shape: Optional[Shape] = None,
        beta_shape: Optional[Shape] = None,
    ) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["center"], config["scale"]
        return config

    def _broadcast(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        value = ops.cast(value, x.dtype)
        channels = x.shape[self.axis]
        if len(value.shape) not in (1, 2) or value.shape[-1] != channels:
            raise ValueError(
                f"ConditionalBatchNorm: {name} of shape {tuple(value.shape)} for inputs of shape "
                f"{tuple(x.shape)}; expected ({channels},) or (batch, {channels})."
            )
        if len(value.shape) == 1:
            return functional.broadcast(value, x, self.axis)
        shape = [-1] + [1] * (len(x.shape) - 1)
        shape[self.axis] = channels
        return ops.reshape(value, shape)


@NORMALIZERS.register("conditional", channelwise=True)
def conditional(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Batch normalization without learned scale and offset: what nobody passes is 1 and 0."""
    return ConditionalBatchNorm(momentum=momentum, epsilon=epsilon, name=name, dtype=dtype)
