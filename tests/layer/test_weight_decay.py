"""Weight decay spares scales, offsets and biases, in every model and behind every wrapper."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from bn_keras import BatchNorm
from bn_keras.normalizers.renorm import BatchRenorm
from bn_keras.optimizers import exclude_from_weight_decay


class Scaled(layers.Layer):
    """A one-dimensional kernel: no bias, and of no normalizer."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],), name="kernel", initializer="ones")

    def call(self, x):
        return x * self.kernel


class OwnNormalizer(layers.Layer):
    """A batch normalization of one's own, whose weights have names of their own."""

    def build(self, shape):
        self.size = self.add_weight(shape=(shape[-1],), name="size", initializer="ones")
        self.moving_mean = self.add_weight(shape=(shape[-1],), name="moving_mean", trainable=False)

    def call(self, x):
        return (x - self.moving_mean) * self.size


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.block = keras.Sequential([
            layers.GRU(4, return_sequences=True), Scaled(), layers.PReLU(shared_axes=[1]),
        ])
        self.many = [BatchNorm(), BatchRenorm(), layers.BatchNormalization(), OwnNormalizer()]
        self.more = {"rows": layers.LayerNormalization(axis=[1, 2]),
                     "rms": layers.RMSNormalization(),
                     "groups": layers.GroupNormalization(2)}

    def call(self, x):
        x = self.block(self.attention(x, x))
        for layer in [*self.many, *self.more.values()]:
            x = layer(x)
        return x


def inner_adamw():
    return keras.optimizers.AdamW(0.1, weight_decay=0.5)


WRAPPED = {
    "AdamW": lambda: inner_adamw(),
    "in a LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(inner_adamw()),
    "wrapped twice": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.LossScaleOptimizer(inner_adamw())
    ),
}


def decayed(model, optimizer):
    """The weights that a step without gradients moves, by their paths inside of the model."""
    for weight in model.trainable_variables:
        weight.assign(tf.ones(weight.shape))
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])
    return sorted(w.path for w in model.trainable_variables if not np.all(w.numpy() == 1))


@pytest.mark.slow
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_kernels_of_any_rank_decay_and_nothing_else_does(make):
    model = Subclassed()
    model(np.ones((2, 3, 4), "float32"))
    moved = decayed(model, exclude_from_weight_decay(make(), model))
    kernels = sorted(
        weight.path for weight in model.trainable_variables
        if weight.name in ("kernel", "recurrent_kernel", "alpha")
    )
    assert moved == kernels and len(kernels) == 8  # four of attention, two of GRU, Scaled, PReLU
    assert len(model.trainable_variables) == 8 + 5 + 7 + 5  # and biases, four BN, three others


@pytest.mark.slow
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_a_training_step_leaves_gamma_to_the_gradient(make):
    """The last scale has no gradient here: the loss does not depend on it."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), BatchNorm()])
    optimizer = exclude_from_weight_decay(make(), model)
    model.compile(optimizer, lambda labels, outputs: 0 * keras.ops.sum(outputs))
    x, kernel = np.ones((8, 4), "float32"), np.abs(model.layers[0].kernel.numpy()).sum()
    model.fit(x, x[:, :3], batch_size=4, verbose=0)
    np.testing.assert_array_equal(model.layers[1].gamma.numpy(), 1)
    assert np.abs(model.layers[0].kernel.numpy()).sum() < 0.95 * kernel


def test_what_was_spared_before_stays_spared():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Scaled(), BatchNorm()])
    optimizer = inner_adamw()
    optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel])
    assert decayed(model, exclude_from_weight_decay(optimizer, model)) == [
        model.layers[1].kernel.path
    ]
    optimizer = inner_adamw()
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    assert decayed(model, exclude_from_weight_decay(optimizer, model)) == []


def test_what_cannot_be_spared_is_named():
    model = keras.Sequential([keras.Input((4,)), BatchNorm()])
    adam = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    with pytest.raises(ValueError, match="Adam in the LossScaleOptimizer has weight_decay=None"):
        exclude_from_weight_decay(adam, model)
    with pytest.raises(TypeError, match="str has no weight_decay; expected"):
        exclude_from_weight_decay("adamw", model)
    with pytest.raises(TypeError, match="received a list as model"):
        exclude_from_weight_decay(inner_adamw(), model.trainable_variables)
    with pytest.raises(ValueError, match="not built and has no weights yet"):
        exclude_from_weight_decay(inner_adamw(), keras.Sequential([BatchNorm()]))
