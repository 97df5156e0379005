"""Batch normalization that is made and never applied.

Found in a textbook's notebook (udlbook/udlbook#138): the normalized values are calculated, and the
inputs are returned.

Hint: nothing is normalized
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
    x_hat = (x - mean) / np.sqrt(variance + eps)  # noqa: F841, which is the mistake
    return x, moving_mean, moving_variance
