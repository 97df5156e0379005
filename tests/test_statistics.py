"""Population statistics of every kind, against averages computed in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bn_keras import BatchNorm
from bn_keras.surgery import statistics

BATCHES = [np.random.default_rng(seed).normal(seed, 2.0, (6, 3)).astype("f") for seed in range(5)]
MEANS = np.array([batch.mean(0) for batch in BATCHES])
VARIANCES = np.array([batch.var(0) for batch in BATCHES])


@pytest.fixture(params=["eager", "graph", "xla"])
def mode(request):
    wraps = {"eager": lambda f: f, "graph": tf.function,
             "xla": lambda f: tf.function(f, jit_compile=True)}
    return wraps[request.param]


def trained(mode, batches=BATCHES, **settings):
    layer = BatchNorm(**settings)
    layer.build((None, 3))
    step = mode(lambda x: layer(x, training=True))
    for batch in batches:
        step(tf.constant(batch))
    return layer


def check(layer, mean, variance):
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


def test_the_debiased_average_forgets_its_start(mode):
    """sum of m^(T-t) x_t over sum of m^(T-t): Kingma & Ba's correction, for mean and variance."""
    weights = 0.9 ** np.arange(len(BATCHES))[::-1]
    weights /= weights.sum()
    check(trained(mode, momentum=0.9, debias=True), weights @ MEANS, weights @ VARIANCES)


def test_the_debiased_average_after_one_batch_is_that_batch(mode):
    layer = trained(mode, BATCHES[3:4], momentum=0.999, debias=True)
    check(layer, MEANS[3], VARIANCES[3])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_debiased_average_at_the_ends_of_its_range(momentum):
    layer = trained(tf.function, momentum=momentum, debias=True)
    weights = {0.0: [0, 0, 0, 0, 1], 0.5: np.array([1, 2, 4, 8, 16]) / 31, 1.0: [0.2] * 5}[momentum]
    check(layer, weights @ MEANS, weights @ VARIANCES)


def test_the_cumulative_average_weighs_all_batches_alike(mode):
    check(trained(mode, momentum=None), MEANS.mean(0), VARIANCES.mean(0))


def test_a_schedule_gives_each_update_its_momentum(mode):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.8])
    mean, variance = np.zeros(3), np.ones(3)
    for t in range(5):
        m = 0.0 if t <= 1 else 0.8
        mean, variance = m * mean + (1 - m) * MEANS[t], m * variance + (1 - m) * VARIANCES[t]
    check(trained(mode, momentum=schedule), mean, variance)


def test_the_unbiased_variance_is_that_of_pytorch(mode):
    layer = trained(mode, BATCHES[:1], momentum=0.9, unbiased_variance=True)
    check(layer, 0.1 * MEANS[0], 0.9 + 0.1 * BATCHES[0].var(0, ddof=1))


def test_a_mask_counts_in_the_unbiased_variance():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("f")
    mask = np.random.default_rng(1).random((4, 5)) < 0.5
    layer = BatchNorm(momentum=0.0, unbiased_variance=True)
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(layer.moving_variance, x[mask].var(0, ddof=1), rtol=1e-5)


def test_a_skipped_batch_does_not_count_as_an_update():
    bad = np.full((6, 3), np.nan, "f")
    layer = trained(tf.function, [BATCHES[0], bad, BATCHES[1]], momentum=None)
    assert int(layer.updates.numpy()) == 2 and layer.skipped_batches == 1
    check(layer, MEANS[:2].mean(0), VARIANCES[:2].mean(0))


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"debias": True}, {"unbiased_variance": True, "one_value": "error"},
     {"momentum": keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.5)},
     {"synchronized": True, "replica_group_size": 2, "explicit_training": True}],
    ids=["cumulative", "debias", "unbiased", "schedule", "groups"],
)
def test_the_own_settings_are_saved_and_read_back(settings, tmp_path):
    model = keras.Sequential([keras.Input((3,)), BatchNorm(**settings)])
    for batch in BATCHES:
        model(batch, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == model.layers[0].get_config()
    model(BATCHES[0], training=True)
    again(BATCHES[0], training=True)
    np.testing.assert_array_equal(again.layers[0].moving_mean, model.layers[0].moving_mean)


def test_default_settings_leave_no_trace_in_config_or_weights():
    keras_layer = keras.layers.BatchNormalization()
    assert set(BatchNorm().get_config()) == set(keras_layer.get_config())


def nested(layer_class):
    inner = keras.Sequential([keras.Input((3,)), layer_class(name="inner_bn")], name="inner")
    return keras.Sequential([keras.Input((3,)), layer_class(name="outer_bn"), inner])


@pytest.mark.parametrize("layer_class", [BatchNorm, keras.layers.BatchNormalization])
def test_snapshot_restore_difference_and_reset_over_a_nested_model(layer_class):
    model = nested(layer_class)
    start = statistics.snapshot(model)
    assert len(start) == 4
    model(BATCHES[2] * 3, training=True)
    moved = statistics.snapshot(model)
    change = statistics.difference(start, moved)
    outer = next(value for path, value in change.items() if "outer" in path)
    shift = np.abs(0.01 * (BATCHES[2] * 3).mean(0)).max()
    growth = (0.99 + 0.01 * (BATCHES[2] * 3).var(0)).max()
    assert outer == pytest.approx((shift, growth), rel=1e-4)
    statistics.reset(model)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, start[path])
    statistics.restore(model, moved)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, moved[path])
    assert statistics.difference(moved, moved) == {path: (0.0, 1.0) for path in change}
