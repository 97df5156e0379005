"""Gamma and beta are made and never applied.

They get no gradient, and the layer can express less.

Hint: gamma and beta not applied
"""

import keras


class BatchNorm(keras.layers.Layer):
    """Batch normalization over all axes but the last."""

    def __init__(self, momentum=0.99, epsilon=1e-3, **settings):
        super().__init__(**settings)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape):
        def weight(name, start, trainable=True):
            return self.add_weight(
                name=name, shape=shape[-1:], initializer=start, trainable=trainable)

        self.gamma, self.beta = weight("gamma", "ones"), weight("beta", "zeros")
        self.moving_mean = weight("moving_mean", "zeros", trainable=False)
        self.moving_variance = weight("moving_variance", "ones", trainable=False)

    def call(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = keras.ops.moments(x, list(range(len(x.shape) - 1)))
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * batch)
        return (x - mean) / keras.ops.sqrt(variance + self.epsilon)
