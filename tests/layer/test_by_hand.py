"""The figures of docs/batch_norm_by_hand.md, each by another way than the notebook's."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import ROOT

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference

X = np.array([[1.0, 13.0], [3.0, 21.0], [3.0, 19.0], [9.0, 27.0]])
GAMMA, BETA = np.array([6.0, 5.0]), np.array([0.0, 1.0])


def layer_of(x, **settings):
    """A layer in float64 that has seen x once in training, and what it made of it."""
    layer = BatchNorm(dtype="float64", **settings)
    return layer, layer(x, training=True).numpy()


def numeric_gradient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = (function(high) - function(low)) / (2 * step)
    return gradient


def test_every_claim_of_the_page_has_its_test():
    page = ROOT / "docs/batch_norm_by_hand.md"
    named = re.findall(r"`(test_claim_\d+)`", page.read_text(encoding="utf-8"))
    assert named == [f"test_claim_{number}" for number in range(1, 12)]
    for name in named:
        assert any(test.startswith(f"{name}_") for test in globals()), name


def test_the_folded_form_is_inference_and_that_of_tensorflow():
    mean, variance = np.array([6.5, 28.5]), np.array([21.5, 59.5])
    factor, shift = reference.fold(mean, variance, GAMMA, BETA)
    np.testing.assert_allclose(factor, [1.294, 0.6482], atol=5e-5)
    expected = tf.nn.batch_normalization(X, mean, variance, BETA, GAMMA, 1e-3)
    np.testing.assert_allclose(X * factor + shift, expected, rtol=1e-13)
    inference = reference.inference(X, mean, variance, GAMMA, BETA)
    np.testing.assert_allclose(X * factor + shift, inference, rtol=1e-13)


def test_the_folded_form_without_gamma_and_beta():
    factor, shift = reference.fold([3.0], [4.0], epsilon=0.0)
    assert (factor.item(), shift.item()) == (0.5, -1.5)


def test_the_folded_form_merges_a_dense_layer_and_batch_normalization():
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), BatchNorm(momentum=0.5)]
    )
    rows = rng.normal(size=(6, 3)).astype("f")
    model(rows, training=True)
    dense, norm = model.layers
    norm.gamma.assign(GAMMA)
    factor, shift = reference.fold(norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta)
    merged = rows @ (dense.kernel.numpy() * factor) + dense.bias.numpy() * factor + shift
    np.testing.assert_allclose(model(rows, training=False), merged, rtol=1e-4, atol=1e-5)


def test_running_statistics_with_decay_one_half():
    layer = BatchNorm(momentum=0.5, dtype="float64")
    for batch in (X, X + 4, 2 * X):
        layer(batch, training=tf.constant(True))
    np.testing.assert_allclose(layer.moving_mean, [6.5, 28.5])
    np.testing.assert_allclose(layer.moving_variance, [21.5, 59.5])


def test_claim_1_variance_one_while_it_is_much_larger_than_epsilon():
    for factor, expected in ((1.0, 0.9999), (0.01, 0.4737)):
        _, y = layer_of(factor * X)
        assert np.std(y[:, 0]) ** 2 == pytest.approx(expected, abs=5e-5)
        assert np.abs(y.mean(axis=0)).max() < 1e-12


def test_claim_2_the_root_of_the_variance_restores_the_input():
    def error(gamma):
        layer = BatchNorm(dtype="float64")
        layer.build(X.shape)
        layer.gamma.assign(gamma)
        layer.beta.assign(X.mean(axis=0))
        return np.abs(layer(X, training=True) - X).max()

    assert error(X.var(axis=0)) == pytest.approx(28, abs=0.01)
    assert error(np.sqrt(X.var(axis=0) + 1e-3)) < 1e-13


def test_claim_3_correlation_is_14_fifteenths_before_and_after():
    _, y = layer_of(X)
    assert np.corrcoef(X.T)[0, 1] == pytest.approx(14 / 15, abs=1e-12)
    assert np.corrcoef(y.T)[0, 1] == pytest.approx(14 / 15, abs=1e-12)


@pytest.mark.parametrize("rows", [2, 4])
def test_claim_4_running_values_have_the_shape_of_the_features(rows):
    layer, _ = layer_of(X[:rows])
    assert tuple(layer.moving_mean.shape) == tuple(layer.moving_variance.shape) == (2,)


def test_claim_5_images_are_averaged_over_all_but_the_channels():
    images = np.random.default_rng(0).normal(size=(8, 5, 5, 3))
    layer, _ = layer_of(images, momentum=0.0)
    expected = [np.mean([pixel[c] for pixel in images.reshape(200, 3)]) for c in range(3)]
    np.testing.assert_allclose(layer.moving_mean, expected, rtol=1e-12)
    over_axis_0, _ = tf.nn.moments(images, axes=[0])
    assert tf.size(over_axis_0) == 75


@pytest.mark.slow
def test_claim_6_a_variance_that_starts_at_0_multiplies_by_31_6():
    def factor(updates, **settings):
        """What inference makes of 1 less what it makes of 0."""
        layer = BatchNorm(dtype="float64", **settings)
        batch = np.array([[-4.0], [4.0]])  # mean 0, variance 16
        layer.build(batch.shape)
        for _ in range(updates):
            layer(batch, training=True)
        zero, one = layer(np.array([[0.0], [1.0]]), training=False).numpy().ravel()
        return one - zero

    zeros = {"moving_variance_initializer": "zeros"}
    assert factor(0, **zeros) == pytest.approx(31.6, abs=0.05)
    assert factor(0) == pytest.approx(1.0, abs=1e-3)
    assert factor(60, **zeros) == pytest.approx(0.376, abs=0.01)
    assert factor(1, debias=True) == factor(60, debias=True) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("momentum, batches", [
    (0.5, 3), (0.9, 19), pytest.param(0.99, 199, marks=pytest.mark.slow)
])
def test_claim_7_the_running_mean_is_as_noisy_as_few_batches(momentum, batches):
    """Measured on 4,000 channels of noise, whose batch means have variance 1 / 2."""
    rng = np.random.default_rng(0)
    layer = BatchNorm(momentum=momentum)
    for _ in range(3 * batches):
        layer(rng.normal(size=(2, 4000)).astype("f"), training=True)
    assert 0.5 / np.var(layer.moving_mean) == pytest.approx(batches, rel=0.1)


def test_claim_8_the_unbiased_variance_is_a_third_larger_in_a_batch_of_4():
    ours, _ = layer_of(X, momentum=0.0)
    paper, _ = layer_of(X, momentum=0.0, unbiased_variance=True)
    theirs = keras.layers.BatchNormalization(momentum=0.0, dtype="float64")
    theirs(X, training=True)
    np.testing.assert_allclose(ours.moving_variance, [9, 25])
    np.testing.assert_allclose(theirs.moving_variance, [9, 25])
    np.testing.assert_allclose(paper.moving_variance, np.cov(X.T).diagonal())
    assert float(paper.moving_variance[0]) == pytest.approx(12)


def test_claim_9_constants_for_the_statistics_give_another_gradient():
    def first_output(column):
        return 6 * (column[0] - column.mean()) / column.std()

    def with_constants(column):
        return 6 * (column[0] - 4) / 3

    column = X[:, 0]
    true = [1, -2 / 3, -2 / 3, 1 / 3]
    np.testing.assert_allclose(numeric_gradient(first_output, column), true, atol=1e-8)
    np.testing.assert_allclose(numeric_gradient(with_constants, column), [2, 0, 0, 0], atol=1e-8)
    dy = np.array([[1.0], [0], [0], [0]])
    dx, _, _ = reference.backward(dy, column[:, None], [6.0], epsilon=0.0)
    np.testing.assert_allclose(dx.ravel(), true, atol=1e-12)
    assert abs(dx.sum()) < 1e-12 and abs((dx.ravel() * column).sum()) < 1e-12


def test_claim_10_a_bias_before_it_is_taken_away_again():
    np.testing.assert_allclose(layer_of(X + 7)[1], layer_of(X)[1], rtol=1e-12)


@pytest.mark.slow
def test_claim_11_ten_times_the_weights_give_the_same_output_and_a_tenth_of_the_gradient():
    def outputs(x, epsilon):
        layer = BatchNorm(dtype="float64", epsilon=epsilon)
        layer.build(x.shape)
        layer.gamma.assign(GAMMA)
        return layer(x, training=True).numpy()

    np.testing.assert_allclose(outputs(10 * X, 0.0), outputs(X, 0.0), rtol=1e-12)
    apart = np.abs(outputs(10 * X, 1e-3) - outputs(X, 1e-3)).max()
    assert apart == pytest.approx(0.0005, abs=5e-5)
    gradient = numeric_gradient(lambda x: outputs(x, 0.0)[0, 0], 10 * X)
    assert gradient[0, 0] == pytest.approx(0.1, abs=1e-6)
