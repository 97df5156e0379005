"""Right: a NumPy class in the way of PyTorch.

Momentum is the weight of the new batch here. That is a convention, and no mistake.

Hint: none; all of its numbers are right.
"""

import numpy as np


class BatchNorm:
    """Batch normalization of rows, with PyTorch's names and momentum."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        self.eps, self.momentum, self.training = eps, momentum, True
        self.gamma, self.beta = np.ones(channels), np.zeros(channels)
        self.running_mean, self.running_var = np.zeros(channels), np.ones(channels)

    def __call__(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(axis=0), x.var(axis=0)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        return self.gamma * (x - mean) / np.sqrt(var + self.eps) + self.beta
