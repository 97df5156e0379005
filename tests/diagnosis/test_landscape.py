"""The loss along a gradient: a quadratic with known answers, and what must stay as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from make import bright_splits, normal, run_config
from zoo import NAMES, ZOO, inputs_of

from bn_keras import losses
from bn_keras.diagnostics.landscape import STEP_SIZES, landscape
from bn_keras.diagnostics.probe import Nets, make_probe
from bn_keras.loop import Steps, Task
from bn_keras.nets import build

SIZES = np.array(STEP_SIZES)


class Quadratic(keras.Model):
    """½ w'Aw, whatever the example."""

    def __init__(self, matrix, start):
        super().__init__(dtype="float64")
        self.matrix = tf.constant(matrix)
        self.w = self.add_weight(shape=start.shape, initializer="zeros", name="w")
        self.w.assign(start)

    def call(self, x):
        value = tf.tensordot(self.w, tf.linalg.matvec(self.matrix, self.w), 1) / 2
        return value + 0 * x


def as_it_is(y, outputs):
    return outputs


def quadratic(start=None):
    """A symmetric matrix, its largest eigenvalue and eigenvector, and the model."""
    root = normal((4, 4), dtype="float64")
    matrix = root @ root.T
    values, vectors = np.linalg.eigh(matrix)
    start = normal((4,), seed=1, dtype="float64") if start is None else start(vectors[:, -1])
    model = Quadratic(matrix, start)
    model(np.zeros((2, 1)))
    return matrix, values[-1], start, model


def test_a_quadratic_has_the_landscape_of_its_matrix():
    matrix, largest, w, model = quadratic()
    found = landscape(model, np.zeros((3, 1)), np.zeros((3, 1)), as_it_is)
    g = matrix @ w
    at = [w - size * g for size in SIZES]
    expected = np.array([one @ matrix @ one / 2 for one in at])
    assert found.loss == pytest.approx(w @ matrix @ w / 2, rel=1e-12)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-12)
    changes = SIZES * np.linalg.norm(matrix @ g)
    np.testing.assert_allclose(found.gradient_changes, changes, rtol=1e-12)
    assert found.loss_range == pytest.approx((expected.min(), expected.max()), rel=1e-12)
    assert found.gradient_predictiveness == pytest.approx((changes[0], changes[-1]), rel=1e-12)
    np.testing.assert_allclose(found.relative_losses, expected / found.loss, rtol=1e-12)
    assert found.effective_smoothness == pytest.approx(
        np.linalg.norm(matrix @ g) / np.linalg.norm(g), rel=1e-12)
    assert found.effective_smoothness < largest
    np.testing.assert_array_equal(model.w.numpy(), w)


def test_along_an_eigenvector_the_smoothness_is_the_eigenvalue():
    _, largest, w, model = quadratic(lambda vector: 3 * vector)
    found = landscape(model, np.zeros((3, 1)), np.zeros((3, 1)), as_it_is, [1 / 1024, 1 / 16])
    np.testing.assert_allclose(found.smoothness, largest, rtol=1e-9)


def test_where_the_gradient_is_zero_there_is_no_smoothness():
    _, _, _, model = quadratic(lambda vector: 0 * vector)
    found = landscape(model, np.zeros((3, 1)), np.zeros((3, 1)), as_it_is)
    assert np.isnan(found.effective_smoothness) and found.gradient_norm == 0


@pytest.mark.parametrize("policy, tolerance", [
    ("float64", 1e-10), ("float32", 1e-3), ("mixed_bfloat16", 0.2),
])
def test_a_net_with_bn_moves_along_the_gradient_through_its_batch(policy, tolerance):
    """Against training steps of plain SGD by hand, with dropout left out."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((5,)), layers.Dense(4, dtype=policy),
        layers.BatchNormalization(dtype=policy), layers.Dropout(0.5, dtype=policy),
        layers.Dense(2, dtype=policy),
    ])
    x, y = normal((8, 5), 1, 2), np.arange(8) % 2
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [variable.numpy() for variable in model.variables]
    found = landscape(model, x, y, step_sizes=[0.5])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    model.layers[2].rate = 0.0

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.loss(y, model(x, training=True)))
        found = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
        return float(loss), [np.asarray(one, "float64") for one in found]

    loss, one = gradients()
    for weight, gradient in zip(model.trainable_variables, one, strict=True):
        weight.assign(weight.numpy() - 0.5 * gradient)
    there, other = gradients()
    change = np.sqrt(sum(np.sum((b - a) ** 2) for a, b in zip(one, other)))
    assert [found.loss, *found.losses] == pytest.approx([loss, there], rel=tolerance)
    assert found.gradient_changes[0] == pytest.approx(change, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ZOO)), ids=NAMES)
def test_every_kind_of_model_has_a_landscape_and_stays_as_it_is(number):
    model, x = ZOO[number](), inputs_of(NAMES[number])
    if not model.trainable_variables:
        pytest.skip("nothing to train")
    before = [variable.numpy() for variable in model.variables]
    y = [np.zeros(np.shape(one)) for one in keras.tree.flatten(model(x, training=False))]

    def squared(y, outputs):
        return sum(tf.reduce_mean(tf.square(tf.cast(one, "float32") - a))
                   for a, one in zip(y, keras.tree.flatten(outputs)))

    found = landscape(model, x, y, squared, [1e-3, 1e-2])
    assert np.isfinite([found.loss, found.gradient_norm, found.effective_smoothness]).all()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("given, message", [
    ({"step_sizes": [0.1, 0]}, r"received step_sizes=\[0.1, 0\]; expected finite numbers above 0"),
    ({"step_sizes": []}, r"received step_sizes=\[\]"),
    ({"loss": None}, "received loss=None for"),
])
def test_what_a_landscape_cannot_be_made_of_is_refused(given, message):
    _, _, _, model = quadratic()
    with pytest.raises(ValueError, match=message):
        landscape(model, np.zeros((3, 1)), np.zeros((3, 1)), **{"loss": as_it_is, **given})


def test_a_model_that_trains_nothing_is_refused():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.trainable = False
    with pytest.raises(ValueError, match="has no trainable weights"):
        landscape(model, np.zeros((3, 2)), np.zeros((3, 1)), "mse")


@pytest.mark.slow
def test_the_probe_measures_each_run_of_a_stack_as_that_net_alone():
    config, splits = run_config(), bright_splits()
    alone = [build(config, splits) for _ in range(2)]
    for seed, model in enumerate(alone):
        for variable in model.trainable_variables:
            variable.assign(variable + normal(variable.shape, 0, 0.1, seed))
    net = build(config, splits, 2)
    for variable, *values in zip(net.variables, *(one.variables for one in alone), strict=True):
        variable.assign(np.stack([value.numpy() for value in values]).reshape(variable.shape))
    nets = Nets(net, splits, Task(losses.softmax), 2)
    nets.configs = [config] * 2
    nets.batches = np.stack([
        np.random.default_rng(seed).permutation(24).reshape(2, 12) for seed in range(2)
    ], -1)
    probe = make_probe("landscape", nets)
    assert probe.start() == {} == probe.at_end()
    found = probe.during(2, Steps(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(2)))
    for run, model in enumerate(alone):
        batch = nets.batches[1, :, run]
        expected = landscape(
            model, splits.train.images[batch], splits.train.labels[batch], losses.softmax
        )
        assert found["landscape/smoothness"][run] == pytest.approx(
            expected.effective_smoothness, rel=1e-9)
        assert [found[f"landscape/{end}_loss"][run] for end in ("lowest", "highest")] == (
            pytest.approx(expected.loss_range, rel=1e-6))
        assert found["landscape/gradient_change"][run] == pytest.approx(
            expected.gradient_predictiveness[1], rel=1e-9)
    np.testing.assert_array_equal(
        probe.at_end()["median_smoothness"], found["landscape/smoothness"])
