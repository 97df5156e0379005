"""The momentum the wrong way round.

Found in a textbook (d2l-ai/d2l-en#2213). At 0.99, the averages are those of the last batch, nearly.

Hint: momentum the other way round
"""

import numpy as np


def batch_norm(x, gamma, beta, moving_mean, moving_variance, training, momentum=0.99, eps=1e-3):
    """Outputs and the new moving statistics."""
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
        moving_mean = (1 - momentum) * moving_mean + momentum * mean
        moving_variance = (1 - momentum) * moving_variance + momentum * variance
    else:
        mean, variance = moving_mean, moving_variance
    x_hat = (x - mean) / np.sqrt(variance + eps)
    return gamma * x_hat + beta, moving_mean, moving_variance
