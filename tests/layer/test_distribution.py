"""BatchNorm under tf.distribute against one big batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import normal
from processes import run_code

from bn_keras import BatchNorm
from bn_keras.batch_norm import functional, kernels, reference
from bn_keras.diagnostics.conformance.replicas import local, spread, two_replicas


@pytest.fixture
def strategy():
    return two_replicas()


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_synchronized_outputs_and_gradients_are_those_of_one_big_batch(strategy, masked):
    """Also with unequal batches and masks, and through the all-reduce."""
    x, dy = normal((9, 4, 3), 1e3), normal((9, 4, 3), seed=1)
    gamma, beta = normal((3,), seed=2), normal((3,), seed=3)
    mask = np.random.default_rng(4).random((9, 4)) < (0.6 if masked else 2)
    cut = 2

    @tf.function
    def step(x, mask, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, mean, variance = functional.batch_norm(
                x, gamma, beta, mask=mask if masked else None, synchronized=True
            )
            loss = tf.reduce_sum(y * dy)
        return y, mean, variance, tape.gradient(loss, x)

    parts = [spread((array[:cut], array[cut:])) for array in (x, mask, dy)]
    y, mean, variance, dx = (local(found) for found in strategy.run(step, parts))
    expected, expected_mean, expected_variance = reference.forward(x, gamma, beta, mask=mask)
    expected_dx, _, _ = reference.backward(dy, x, gamma, mask=mask)
    for replica in range(2):
        np.testing.assert_allclose(mean[replica], expected_mean, rtol=1e-6)
        np.testing.assert_allclose(variance[replica], expected_variance, rtol=1e-3)
    np.testing.assert_allclose(np.concatenate(y), expected, atol=2e-3)
    # The gradient of the sum over replicas, as an optimizer adds it up.
    np.testing.assert_allclose(np.concatenate(dx), expected_dx, atol=2e-3)


@pytest.mark.slow
def test_a_replica_with_an_empty_batch_takes_the_others_statistics(strategy):
    with strategy.scope():
        layer = BatchNorm(momentum=0.0, synchronized=True)
        layer.build((None, 3))
    x = normal((6, 3), 4.0)
    step = tf.function(lambda part: layer(part, training=True))
    strategy.run(step, [spread((x[:0], x))])
    np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-5)
    assert layer.skipped_batches == 0


def test_unsynchronized_statistics_are_read_and_saved_as_their_mean(strategy, tmp_path):
    with strategy.scope():
        layer = BatchNorm(momentum=0.0)
        layer.build((None, 3))
    parts = normal((8, 3), 1.0), normal((8, 3), 5.0, seed=1)
    strategy.run(tf.function(lambda part: layer(part, training=True)), [spread(parts)])
    mean, variance = layer.get_weights()[2:]
    np.testing.assert_allclose(mean, np.mean([part.mean(0) for part in parts], 0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.mean([part.var(0) for part in parts], 0), rtol=1e-5)
    fresh = BatchNorm()
    fresh.build((None, 3))
    fresh.set_weights(layer.get_weights())
    np.testing.assert_allclose(fresh(parts[0]), layer(parts[0]), atol=1e-5)


@pytest.mark.slow
def test_fit_over_replicas_keeps_the_mean_of_their_statistics(strategy):
    """Keras's layer keeps the first replica's, also through compile and fit."""
    x = np.repeat(np.array([[1.0, 1.0], [5.0, 5.0]], "float32"), 4, axis=0)
    found = []
    for layer_class in (BatchNorm, keras.layers.BatchNormalization):
        with strategy.scope():
            model = keras.Sequential([keras.Input((2,)), layer_class(momentum=0.0)])
            model.compile("sgd", "mse")
        model.fit(x, x, batch_size=8, epochs=1, shuffle=False, verbose=0)
        found.append(model.layers[0].moving_mean.numpy())
    np.testing.assert_allclose(found[0], [3.0, 3.0], atol=0.1)
    assert not np.allclose(found[1], [3.0, 3.0], atol=0.1), "Keras mended this: see docs/layer.md"


def test_skipped_batches_add_up_over_the_replicas(strategy):
    with strategy.scope():
        layer = BatchNorm()
        layer.build((None, 3))
    parts = np.full((4, 3), np.nan, "f"), normal((4, 3))
    strategy.run(tf.function(lambda part: layer(part, training=True)), [spread(parts)])
    assert layer.skipped_batches == 1


@pytest.mark.slow
def test_many_steps_in_one_graph_loop_per_replica(strategy):
    """Without synchronization; TensorFlow's all-reduce of one process refuses to be in a loop."""
    with strategy.scope():
        layer = BatchNorm(momentum=0.5)
        layer.build((None, 3))

    @tf.function
    def steps(part):
        for _ in tf.range(3):
            layer(part, training=True)

    parts = normal((4, 3), 2.0), normal((4, 3), 6.0, seed=1)
    strategy.run(steps, [spread(parts)])
    expected = np.mean([part.mean(0) for part in parts], 0) * (1 - 0.5**3)
    np.testing.assert_allclose(layer.moving_mean, expected, rtol=1e-5)


@pytest.mark.slow
def test_groups_of_replicas_share_their_statistics_only(tmp_path):
    """Four replicas in two groups; the all-reduce is real, over four devices of one process."""
    code = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 4)
from bn_keras import BatchNorm
strategy = tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(4)])
x = np.random.default_rng(0).normal(3, 2, (4, 5, 2)).astype('float32')
values = iter([tf.constant(part) for part in x])
parts = strategy.experimental_distribute_values_from_function(lambda _: next(values))
with strategy.scope():
    layer = BatchNorm(momentum=0.0, synchronized=True, replica_group_size=2)
    layer.build((None, 2))
y = strategy.run(tf.function(lambda part: layer(part, training=True)), [parts])
y = np.array([part.numpy() for part in strategy.experimental_local_results(y)])
for group in (slice(0, 2), slice(2, 4)):
    both = x[group].reshape(-1, 2)
    expected = (x[group] - both.mean(0)) / np.sqrt(both.var(0) + 1e-3)
    np.testing.assert_allclose(y[group], expected, atol=1e-5)
with strategy.scope():
    layer = BatchNorm(synchronized=True, replica_group_size=3)
    layer.build((None, 2))
try:
    strategy.run(tf.function(lambda part: layer(part, training=True)), [parts])
except ValueError as error:
    assert 'replica_group_size=3 with 4 replicas' in str(error), error
else:
    raise AssertionError('a group size that does not divide was accepted')
"""
    status, _, errors = run_code(tmp_path, code)
    assert status == 0, errors[-2000:]


def test_outside_of_replicas_nothing_is_summed():
    value = tf.constant([1.0, 2.0])
    assert kernels.all_reduce_sum(value) is value
