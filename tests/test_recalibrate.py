"""Population statistics that are recomputed are those of all examples, at fixed weights."""

import keras
import numpy as np
import pytest

from bn_keras import BatchNorm
from bn_keras.surgery.recalibrate import recalibrate
from bn_keras.surgery.statistics import batch_normalizers

KINDS = [BatchNorm, keras.layers.BatchNormalization]


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(np.float32)


def net(kind, inner=None):
    """Dense, normalizer, tanh, twice; with weights and statistics that are not the initial ones."""
    inputs = keras.Input((3,))
    x = kind()(keras.layers.Dense(4)(inputs))
    x = keras.ops.tanh(x) if inner is None else inner(x)
    model = keras.Model(inputs, kind()(keras.layers.Dense(2)(x)))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_that_numpy_gives_layer_by_layer(kind, batch_size):
    x = data(23, 3)
    model = net(kind)
    copy = recalibrate(model, x, batch_size)
    dense = [w.astype(np.float64) for w in model.get_weights()]
    (w1, b1, gamma, beta), (w2, b2) = dense[:4], dense[6:8]
    z = x @ w1 + b1
    first, second = batch_normalizers(copy)
    np.testing.assert_allclose(first.moving_mean.numpy(), z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(first.moving_variance.numpy(), z.var(0), rtol=1e-5)
    z = np.tanh((z - z.mean(0)) / np.sqrt(z.var(0) + first.epsilon) * gamma + beta) @ w2 + b2
    np.testing.assert_allclose(second.moving_mean.numpy(), z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(second.moving_variance.numpy(), z.var(0), rtol=1e-5)


def test_the_given_model_and_all_trainable_weights_stay_as_they_were():
    model = net(BatchNorm)
    before = [weight.copy() for weight in model.get_weights()]
    copy = recalibrate(model, data(9, 3))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(model.trainable_weights, copy.trainable_weights, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    x = data(9, 3)  # the copy's layers are watched no more, and work as ever
    np.testing.assert_allclose(copy(x, training=True), model(x, training=True), rtol=1e-4)


def test_images_have_one_statistic_a_channel_and_nested_models_are_reached():
    inner = keras.Sequential([keras.layers.Conv2D(2, 3), BatchNorm()])
    model = keras.Sequential([keras.Input((6, 6, 1)), inner, keras.layers.Flatten()])
    x = data(5, 6, 6, 1)
    before = inner.layers[0](x).numpy()
    layer, = batch_normalizers(recalibrate(model, x, batch_size=2))
    np.testing.assert_allclose(layer.moving_mean.numpy(), before.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance.numpy(), before.var((0, 1, 2)), rtol=1e-4)


def test_masked_positions_do_not_count():
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, BatchNorm()(keras.layers.Masking(0.0)(inputs)))
    x = data(6, 4, 2)
    x[:, 2:] = 0
    layer, = batch_normalizers(recalibrate(model, x, batch_size=4))
    np.testing.assert_allclose(layer.moving_mean.numpy(), x[:, :2].mean((0, 1)), rtol=1e-5)


def test_a_model_without_normalization_comes_back_as_it_is():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x = data(4, 3)
    np.testing.assert_array_equal(recalibrate(model, x)(x), model(x))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="received 0 examples"):
        recalibrate(net(BatchNorm), data(0, 3))
