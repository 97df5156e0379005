"""Fused update kernels against Keras's formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES

from bn_keras.optimizers import FusedAdam, FusedSGD
from bn_keras.registry import OPTIMIZERS


def trained(optimizer, dtype, mode):
    """A weight after some steps on fixed gradients."""
    start, gradients = start_and_gradients()
    weight = keras.Variable(start, dtype=dtype)
    optimizer.build([weight])
    step = MODES[mode](lambda gradient: optimizer.apply([gradient], [weight]))
    for gradient in gradients:
        step(tf.constant(gradient, dtype))
    return weight.numpy().astype(float)


def start_and_gradients(steps=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 4)), [rng.normal(size=(3, 4)) for _ in range(steps)]


def adam(dtype):
    """Kingma & Ba's algorithm 1 in the order of their section 2's last lines, in NumPy."""
    weight, gradients = start_and_gradients()
    first, second = np.zeros((3, 4)), np.zeros((3, 4))
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.astype(dtype)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = np.float32(0.1) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weight = weight - rate * first / (np.sqrt(second) + 1e-7)
    return weight


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype, digits",
    [("float16", 1e-3), ("bfloat16", 1e-2), ("float32", 1e-6), ("float64", 1e-14)],
)
def test_fused_sgd_updates_as_keras_does(dtype, digits, mode):
    found = trained(FusedSGD(learning_rate=0.1), dtype, mode)
    expected = trained(keras.optimizers.SGD(learning_rate=0.1), dtype, "eager")
    np.testing.assert_allclose(found, expected, rtol=digits, atol=digits)
    assert np.abs(found - start_and_gradients()[0]).max() > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype, digits", [("float32", 1e-5), ("float64", 1e-12)])
def test_fused_adam_updates_as_the_paper_does(dtype, digits, mode):
    """Keras rounds the two betas to float32 also for weights in float64."""
    found = trained(FusedAdam(learning_rate=0.1), dtype, mode)
    np.testing.assert_allclose(found, adam(dtype), rtol=digits, atol=digits)


def test_clipping_works_with_the_fused_kernels_as_with_keras():
    found = trained(FusedSGD(0.1, clipnorm=0.5), "float64", "graph")
    expected = trained(keras.optimizers.SGD(0.1, clipnorm=0.5), "float64", "eager")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_a_fused_kernel_does_not_do_is_refused():
    with pytest.raises(ValueError, match="received momentum=0.9, nesterov=False; expected plain"):
        FusedSGD(0.1, momentum=0.9)
    with pytest.raises(ValueError, match="received amsgrad=True"):
        FusedAdam(0.1, amsgrad=True)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_fused_optimizer_comes_back_from_its_configuration(name):
    optimizer = OPTIMIZERS.get(name)(learning_rate=0.25)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_takes_its_rate_by_name(name):
    optimizer = OPTIMIZERS.get(name)(learning_rate=0.25)
    assert isinstance(optimizer, keras.optimizers.Optimizer)
    assert float(optimizer.learning_rate) == 0.25
