"""The normalizer `skipinit`: none at all, and residual branches that start switched off.

De & Smith (2020), "Batch Normalization Biases Residual Blocks Towards the Identity Function in
Deep Networks": a residual block computes x + alpha * branch(x), where alpha is a learned number
that starts at 0. That, the paper says, is what batch normalization does for deep residual nets.
"""

import keras

from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("skipinit", scales_branches=True)
def skipinit(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Nothing at a normalizer's place; Blocks puts the alpha at the end of residual branches."""
    return keras.layers.Identity(name=name, dtype=dtype)
