"""Batch normalization and its activation as one layer."""

from typing import Any, Callable, Optional, Union

import keras
from keras import activations

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class ActivatedBatchNorm(BatchNorm):
    """BatchNorm followed by an activation: y = activation(batch_norm(x)).

    >>> import numpy as np
    >>> layer = ActivatedBatchNorm(activation="relu")
    >>> np.round(layer(np.array([[1.0], [3.0]], "float32"), training=True).numpy().ravel(), 2)
    array([0., 1.], dtype=float32)

    Args:
        activation: Keras's name of it, or a function; None for none.
        *args, **kwargs: as for BatchNorm.
    """

    def __init__(
        self, *args: Any, activation: Union[str, Callable[..., Any], None] = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activations.get(activation)

    def call(
        self, inputs: Any, training: Any = None, mask: Any = None, update_statistics: Any = True
    ) -> Any:
        """As BatchNorm's, activated."""
        return self.activation(super().call(inputs, training, mask, update_statistics))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "activation": activations.serialize(self.activation)}


@NORMALIZERS.register("activated", channelwise=True)
def activated(
    name: str, *, momentum: float, epsilon: float, dtype: str, activation: Optional[str] = None
) -> keras.Layer:
    """Batch normalization and the net's own activation in one layer."""
    return ActivatedBatchNorm(
        activation=activation, momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )
