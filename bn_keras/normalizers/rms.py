"""The normalizer `rms`: each position divided by the root mean square of its channels.

Zhang & Sennrich (2019), "Root Mean Square Layer Normalization": layer normalization without its
subtraction of the mean, y = gamma * x / sqrt(mean(x²) + epsilon), the mean over the channels.
"""

from typing import Any

import keras

from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class RMSNorm(keras.layers.RMSNormalization):
    """Keras's RMSNormalization, which drops a mask on its way, with the mask passed on.

    Args:
        *args, **kwargs: as for keras.layers.RMSNormalization.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.supports_masking = True


@NORMALIZERS.register("rms")
def rms(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Zhang & Sennrich (2019), over the channels of each position; the mean stays."""
    return RMSNorm(epsilon=epsilon, name=name, dtype=dtype)
