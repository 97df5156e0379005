"""Right: a NumPy class for images, channels first.

One mean and one variance a channel, over batch, height and width.

Hint: none; all of its numbers are right.
"""

import numpy as np


class BatchNorm2d:
    """Batch normalization of images, channels first."""

    def __init__(self, channels, eps=1e-5, momentum=0.9):
        self.eps, self.momentum = eps, momentum
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = np.ones(shape), np.zeros(shape)
        self.moving_mean, self.moving_var = np.zeros(shape), np.ones(shape)

    def forward(self, x, training):
        mean, var = self.moving_mean, self.moving_var
        if training:
            assert x.ndim == 4
            mean = x.mean(axis=(0, 2, 3), keepdims=True)
            var = x.var(axis=(0, 2, 3), keepdims=True)
            self.moving_mean = self.momentum * self.moving_mean + (1 - self.momentum) * mean
            self.moving_var = self.momentum * self.moving_var + (1 - self.momentum) * var
        return self.gamma * (x - mean) / np.sqrt(var + self.eps) + self.beta
