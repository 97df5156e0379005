"""Gradients of gradients through BatchNorm, as a gradient penalty takes them, and of many outputs.

The judge is Keras's layer, whose gradients TensorFlow derives from plain operations; in float64,
where rounding hides nothing, and in float32, where other kernels serve large inputs.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES, normal, product_of

from bn_keras import BatchNorm

SHAPES = {"dense": (6, 3), "conv": (3, 4, 4, 2), "large dense": (1600, 64),
          "large conv": (16, 32, 32, 8)}
TOLERANCES = {"float64": 1e-10, "float32": 3e-5}
# Together, so that each of them occurs with every shape: the kernel depends on all three.
PHASES = {
    f"{name}-{dtype}": (training, dtype)
    for name, training in (("training", True), ("inference", False)) for dtype in TOLERANCES
}


def data(shape, seed=0, dtype="float32"):
    return tf.constant(normal(shape, mean=0.5, seed=seed, dtype=dtype))


def made(kind, shape, **settings):
    """A layer whose weights all take part."""
    layer = kind(momentum=0.9, **settings)
    layer.build(shape)
    for seed, weight in enumerate(layer.weights):
        weight.assign(0.7 + np.abs(data(weight.shape, seed + 5)))
    return layer


def penalty(layer, training, wrap):
    """A loss with the squared norm of the input's gradient in it: its value and gradients."""

    def step(x, pull):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=training)
                score = tf.reduce_sum(pull * tf.sin(y))
            dx = inner.gradient(score, x)
            loss = score + tf.reduce_sum(tf.square(dx))
        return loss, outer.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    return wrap(step)


@pytest.mark.slow
@product_of(shape=SHAPES, mode=MODES, phase=PHASES)
def test_a_gradient_penalty_is_that_of_keras(shape, mode, phase):
    training, dtype = phase
    x, pull = data(shape, 0, dtype), data(shape, 1, dtype)
    found = []
    for kind, wrap in ((BatchNorm, mode), (keras.layers.BatchNormalization, MODES["eager"])):
        layer = made(kind, shape, dtype=dtype)
        loss, gradients = penalty(layer, training, wrap)(x, pull)
        found.append([np.asarray(value, "float64") for value in (loss, *gradients)])
    for name, ours, theirs in zip(("loss", "x", "gamma", "beta"), *found, strict=True):
        scale = max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=TOLERANCES[dtype] * scale, err_msg=name
        )


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [SHAPES["dense"], SHAPES["conv"]], ids=["dense", "conv"])
def test_examples_may_be_mapped_one_by_one_in_inference(shape, in_graph):
    x = data(shape)
    layer = made(BatchNorm, shape)

    def each(x):
        return tf.vectorized_map(lambda one: layer(one[None], training=False)[0], x)

    found = (tf.function(each) if in_graph else each)(x)
    np.testing.assert_allclose(found, layer(x, training=False), atol=1e-6)


@pytest.mark.slow
@product_of(
    shape=[SHAPES["dense"], SHAPES["conv"]],
    in_graph={"eager": False, "graph": True},
    # In training, examples depend on each other: their Jacobians by themselves mean nothing.
    derivative={
        "training": ("jacobian", True), "inference": ("jacobian", False),
        "each example": ("batch_jacobian", False),
    },
)
def test_jacobians_are_those_of_keras(shape, in_graph, derivative):
    what, training = derivative
    x = data(shape)
    found = []
    for kind in (BatchNorm, keras.layers.BatchNormalization):
        layer = made(kind, shape)

        def jacobian(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=training)
            return getattr(tape, what)(y, x)

        found.append((tf.function(jacobian) if in_graph else jacobian)(x))
    assert np.abs(found[1]).max() > 0.1
    np.testing.assert_allclose(*found, atol=1e-5)
