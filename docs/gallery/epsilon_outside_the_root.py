"""Epsilon outside of the root.

A docstring of a well-known library had it so. It is another function where the variance is small.

Hint: epsilon outside the root
"""

import numpy as np


def batch_norm(x, gamma, beta, moving_mean, moving_variance, training, momentum=0.99, eps=1e-3):
    """Outputs and the new moving statistics."""
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
        moving_mean = momentum * moving_mean + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance
    else:
        mean, variance = moving_mean, moving_variance
    x_hat = (x - mean) / (np.sqrt(variance) + eps)
    return gamma * x_hat + beta, moving_mean, moving_variance
