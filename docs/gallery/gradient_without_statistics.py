"""A gradient that takes mean and variance for constants.

The commonest mistake in a backward pass written by hand; in frameworks, it is a stop_gradient.

Hint: statistics are constants in the gradient
"""

import numpy as np


class BatchNorm:
    """Batch normalization of rows, with its gradient."""

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
        self.x_hat, self.root = (x - mean) / np.sqrt(var + self.eps), np.sqrt(var + self.eps)
        return self.gamma * self.x_hat + self.beta

    def backward(self, dy):
        self.dgamma, self.dbeta = (dy * self.x_hat).sum(axis=0), dy.sum(axis=0)
        dx_hat = dy * self.gamma
        return dx_hat / self.root
