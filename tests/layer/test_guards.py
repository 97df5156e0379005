"""What BatchNorm does with batches that say nothing, and with calls that do not say enough."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import RENORM, normal, product_of

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference
from bn_keras.config import RunConfig
from bn_keras.data import Split, Splits
from bn_keras.results import Store
from bn_keras.runner import Runner


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_skipped_batches_are_counted_and_leave_every_statistic_alone(in_graph):
    layer = BatchNorm(momentum=0.5, renorm=True, one_value="ignore")
    layer.build((None, 4, 3))

    def step(x, mask):
        return layer(x, training=True, mask=mask)

    if in_graph:
        signature = [tf.TensorSpec([None, 4, 3]), tf.TensorSpec([None, 4], tf.bool)]
        step = tf.function(step, input_signature=signature)
    good, keep = tf.constant(normal((6, 4, 3))), tf.ones((6, 4), tf.bool)
    step(good, keep)
    assert layer.skipped_batches == 0
    before = [weight.numpy() for weight in layer.non_trainable_variables]
    poisoned = normal((6, 4, 3))
    poisoned[0, 0, 0] = np.nan
    one = np.zeros((6, 4), bool)
    one[2, 1] = True
    for number, (x, mask) in enumerate(
        [(good, ~keep), (tf.constant(poisoned), keep), (good[:0], keep[:0]), (good, one)], start=1
    ):
        step(x, tf.constant(mask))
        assert layer.skipped_batches == number
        for weight, value in zip(layer.non_trainable_variables, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), value)
    step(good, keep)
    assert layer.skipped_batches == 4
    assert not np.array_equal(layer.moving_mean.numpy(), before[0])


def test_finite_values_with_an_infinite_variance_are_left_out():
    layer = BatchNorm()
    x = np.array([[1e30, 0.0], [-1e30, 1.0], [1.0, 2.0]], "float32")
    layer(x, training=True)
    assert layer.skipped_batches == 1
    assert layer.moving_variance.numpy().tolist() == [1, 1]


def test_a_masked_non_finite_value_does_no_harm():
    layer = BatchNorm(momentum=0.0)
    x, mask = normal((4, 5, 2)), np.ones((4, 5), bool)
    _, mean, variance = reference.forward(x[:, :3])
    x[:, 3:], mask[:, 3:] = np.nan, False
    layer(x, training=True, mask=mask)
    assert layer.skipped_batches == 0
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("kept", [0, 1], ids=["no value", "one value"])
def test_a_batch_in_which_some_channels_count_is_taken_as_keras_takes_it(renorm, kept):
    """A mask of the first two axes over the channels of axis 1: what `Masking` makes of padding."""
    x, mask = normal((4, 3, 1), 7.0), np.ones((4, 3), bool)
    mask[kept:, 2] = False
    found = []
    for kind in (BatchNorm, keras.layers.BatchNormalization):
        layer = kind(axis=1, momentum=0.5, moving_mean_initializer="ones", renorm=renorm)
        layer(x, training=True, mask=tf.constant(mask))
        found.append([weight.numpy() for weight in layer.non_trainable_variables])
        assert getattr(layer, "skipped_batches", 0) == 0
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_counter_is_no_weight_and_survives_no_file(tmp_path):
    layer = BatchNorm()
    layer.build((None, 3))
    assert [weight.name for weight in layer.variables] == [
        "gamma", "beta", "moving_mean", "moving_variance"
    ]


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)], ids=["dense", "conv"])
def test_one_value_per_channel_warns_errs_or_is_ignored_as_asked(shape):
    x = normal(shape)
    with pytest.warns(UserWarning, match="one value per channel in training"):
        BatchNorm()(x, training=True)
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm(one_value="error")(x, training=True)
    BatchNorm(one_value="ignore")(x, training=True)
    BatchNorm(one_value="error")(x, training=False)


def test_one_value_per_channel_errs_in_a_graph_of_unknown_batch_size():
    layer = BatchNorm(one_value="error")
    layer.build((None, 3))
    step = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, 3])]
    )
    step(tf.constant(normal((2, 3))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value per channel"):
        step(tf.constant(normal((1, 3))))


def test_one_value_per_channel_is_fine_where_a_training_tensor_says_inference():
    layer = BatchNorm(one_value="error")
    layer.build((None, 3))
    step = tf.function(lambda x, training: layer(x, training=training))
    x = tf.constant(normal((1, 3)))
    step(x, tf.constant(False))
    assert layer.skipped_batches == 0, "inference was counted"
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value per channel"):
        step(x, tf.constant(True))


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3), (0, 4, 4, 3), (0, 2, 2, 2, 3), (4, 0, 0, 3)])
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_an_empty_batch_passes_through_forward_and_backward(shape, mode):
    layer = BatchNorm()
    layer.build((None, *shape[1:]))

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, layer.gamma.value])

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    y, (dx, dgamma) = step(tf.zeros(shape))
    assert y.shape == dx.shape == shape and dgamma.numpy().tolist() == [0, 0, 0]
    assert layer.skipped_batches == 1
    assert layer.moving_variance.numpy().tolist() == [1, 1, 1]


@pytest.mark.slow
@product_of(
    shape=[(0, 4, 3), (0, 4, 4, 3), (4, 0, 0, 3)], jit_compile={"graph": False, "xla": True},
    renorm=RENORM, axis=[-1, 1],
)
def test_a_batch_may_turn_out_to_be_empty(shape, jit_compile, renorm, axis):
    """The graph is traced with open sizes, so that only the run can tell."""
    shape = shape if axis == -1 else (shape[0], 3, *shape[1:-1])
    open_shape = [size if size == 3 else None for size in shape]
    layer = BatchNorm(axis=axis, renorm=renorm)
    layer.build(open_shape)

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec(open_shape)])
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, layer.gamma.value, layer.beta.value])

    dx, dgamma, dbeta = gradients(tf.zeros(shape))
    assert dx.shape == shape
    assert dgamma.numpy().tolist() == dbeta.numpy().tolist() == [0, 0, 0]
    assert layer.skipped_batches == 1
    full = tf.constant(normal([size or 2 for size in shape]))
    assert np.isfinite(gradients(full)[1]).all() and layer.skipped_batches == 1
    assert np.abs(layer.moving_mean).min() > 0


@pytest.mark.slow
def test_the_last_batch_of_one_is_counted_in_fit():
    model = keras.Sequential([keras.Input((3,)), BatchNorm(momentum=0.9)])
    model.compile("sgd", "mse")
    x = normal((129, 3))
    model.fit(x, x, batch_size=128, shuffle=False, verbose=0)
    assert model.layers[0].skipped_batches == 1
    expected = 0.9 + 0.1 * x[:128].var(0)
    np.testing.assert_allclose(model.layers[0].moving_variance, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_run_draws_the_counter_as_a_curve_that_starts_over_with_each_seed(tmp_path):
    """Of `mnist_cnn`'s three normalizers, two have one value a channel in a batch of one."""
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1)).astype(np.uint8)
    part = Split(images, np.arange(12, dtype=np.int32) % 10)
    settings = {"batch_size": 1, "steps": 3, "log_interval": 1, "validation_size": 10}
    splits = Splits(part, part, part, classes=10)
    run = Runner(lambda config: splits, Store(tmp_path))
    for seed in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result, = run([RunConfig(seed=seed, measure=(), **settings)])
        assert result.curves["statistics/skipped_batches"] == [[1, 2], [2, 4], [3, 6]]


@pytest.mark.slow
def test_explicit_training_refuses_a_call_that_does_not_say():
    model = keras.Sequential([keras.Input((3,)), BatchNorm(explicit_training=True, name="bn")])
    x = normal((4, 3))
    with pytest.raises(ValueError, match="'bn': called without `training`"):
        model(x)
    model(x, training=True)
    model(x, training=False)
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    model.predict(x, verbose=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"one_value": "stop"}, "one_value='stop'; expected one of warn, error, ignore"),
        ({"replica_group_size": 2}, "replica_group_size=2 with synchronized=False"),
        ({"debias": True, "momentum": None}, "debias=True with momentum=None"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(**settings)
