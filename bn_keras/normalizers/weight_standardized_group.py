"""The normalizer `weight_standardized_group`: group normalization behind standardized kernels.

Qiao, Wang, Liu, Shen & Yuille (2019), "Micro-Batch Training with Batch-Channel Normalization and
Weight Standardization". Each layer in front of a group normalization computes with

    w_hat = (w - mean(w)) / sqrt(variance(w) + 1e-5)

in place of its kernel w, mean and variance over all inputs of one output channel.
"""

import keras

from bn_keras.normalizers.group import PAPER_GROUPS, GroupNorm
from bn_keras.registry import NORMALIZERS


@NORMALIZERS.register("weight_standardized_group", standardizes_kernels=True)
def weight_standardized_group(
    name: str, *, momentum: float, epsilon: float, dtype: str
) -> keras.Layer:
    """Qiao et al. (2019); the layers in front come from `models.layers`, by way of Blocks."""
    return GroupNorm(groups=PAPER_GROUPS, epsilon=epsilon, name=name, dtype=dtype)
