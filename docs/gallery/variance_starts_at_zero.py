"""The moving variance starts at 0.

The first evaluations divide by the root of epsilon. It takes some 5 / (1 - momentum)
steps to wear off.

Hint: variance starts at 0
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
        self.moving_variance = weight("moving_variance", "zeros", trainable=False)

    def call(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = keras.ops.moments(x, list(range(len(x.shape) - 1)))
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * batch)
        x_hat = (x - mean) / keras.ops.sqrt(variance + self.epsilon)
        return self.gamma * x_hat + self.beta
