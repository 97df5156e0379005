"""Known faults of Keras's layer: shown there, so that we notice a mending, and absent here.

`fault(layer class)` builds a layer and returns whether the fault is there.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import spread, two_replicas

from bn_keras import BatchNorm
from bn_keras.norms import reference
from bn_keras.optimizers import exclude_from_weight_decay

KERAS = keras.layers.BatchNormalization


def normal(shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1.0, shape).astype("float32")


def after_two_replicas(layer_class, parts, masks=None, **settings):
    """A layer after one training step in which each of two replicas saw its part."""
    with two_replicas().scope():
        layer = layer_class(momentum=0.0, **settings)
        layer.build(parts[0].shape)

    @tf.function
    def step(x, mask):
        return layer(x, training=True, mask=mask)

    two_replicas().run(step, [spread(parts), None if masks is None else spread(masks)])
    return layer


def raises(call):
    try:
        call()
    except Exception:
        return True
    return False


def replicas_keep_their_own_statistics(layer_class):
    """Reading the moving mean of replicas that saw 1 and 5 gives 1 and not 3."""
    layer = after_two_replicas(layer_class, [np.full((4, 2), 1.0, "f"), np.full((4, 2), 5.0, "f")])
    return not np.allclose(layer.moving_mean.numpy(), 3.0)


def fit_keeps_the_first_replicas_statistics(layer_class):
    """The same through compile and fit."""
    with two_replicas().scope():
        model = keras.Sequential([keras.Input((2,)), layer_class(momentum=0.0)])
        model.compile("sgd", "mse")
    x = np.repeat(np.array([[1.0, 1.0], [5.0, 5.0]], "float32"), 4, axis=0)
    model.fit(x, x, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return not np.allclose(model.layers[0].moving_mean.numpy(), 3.0, atol=0.1)


def a_mask_switches_synchronization_off(layer_class):
    """synchronized=True with a mask: each replica's own mean."""
    parts = [np.full((4, 3, 2), 1.0, "f"), np.full((4, 3, 2), 5.0, "f")]
    masks = [np.ones((4, 3), bool)] * 2
    layer = after_two_replicas(layer_class, parts, masks, synchronized=True)
    return not np.allclose(layer.moving_mean.numpy(), 3.0)


def synchronized_variance_cancels(layer_class):
    """E[x^2] - E[x]^2 of 1e4 + N(0, 1) in float32."""
    parts = [normal((256, 2), 1e4, seed) for seed in range(2)]
    layer = after_two_replicas(layer_class, parts, synchronized=True)
    expected = np.concatenate(parts).astype(float).var(0)
    return not np.allclose(layer.moving_variance.numpy(), expected, rtol=0.01)


def one_bad_sample_poisons_the_statistics(layer_class):
    """NaN for good after a single non-finite value."""
    layer = layer_class(momentum=0.5)
    bad = normal((8, 3))
    bad[2, 1] = np.inf
    layer(bad, training=True)
    for seed in range(50):
        layer(normal((8, 3), seed=seed), training=True)
    return not all(np.isfinite(weight.numpy()).all() for weight in layer.non_trainable_variables)


def an_empty_batch_gives_nan(layer_class):
    """A batch of no rows."""
    layer = layer_class()
    layer(normal((8, 3)), training=True)
    layer(np.zeros((0, 3), "float32"), training=True)
    return not np.isfinite(layer.moving_mean.numpy()).all()


def a_fully_masked_batch_drags_the_statistics(layer_class):
    """Towards 0, by batches in which nothing counts."""
    layer = layer_class(momentum=0.9)
    x = normal((8, 5, 3), 5.0)
    for _ in range(50):
        layer(x, training=True, mask=np.ones((8, 5), bool))
    before = layer.moving_mean.numpy()
    for _ in range(20):
        layer(x, training=True, mask=np.zeros((8, 5), bool))
    return not np.allclose(layer.moving_mean.numpy(), before)


def one_value_per_channel_decays_the_variance(layer_class):
    """In silence: a batch of one row has variance 0."""
    layer = layer_class(momentum=0.9)
    with pytest.warns(Warning) if layer_class is BatchNorm else keras.name_scope("quiet"):
        layer(normal((1, 3)), training=True)
    return not np.allclose(layer.moving_variance.numpy(), 1.0)


def training_may_not_be_a_tensor(layer_class):
    """Inside tf.function."""
    layer = layer_class()

    @tf.function
    def call(x, training):
        return layer(x, training=training)

    return raises(lambda: call(normal((4, 3)), tf.constant(True)))


def axis_may_not_be_a_list(layer_class):
    """A list of one axis."""
    return raises(lambda: layer_class(axis=[-1])(normal((4, 3))))


def a_mask_needs_channels_last(layer_class):
    """axis=1 with a mask."""
    mask = np.ones((4, 6), bool)
    return raises(lambda: layer_class(axis=1)(normal((4, 3, 6)), training=True, mask=mask))


def impossible_settings_are_accepted(layer_class):
    """momentum=1.5 and epsilon=-1."""
    return not raises(lambda: layer_class(momentum=1.5)) or not raises(
        lambda: layer_class(epsilon=-1)
    )


def float16_statistics(layer_class):
    """dtype="float16" loses small updates of the moving statistics."""
    layer = layer_class(momentum=0.999, dtype="float16")
    for _ in range(2000):
        layer(np.full((4, 1), 3.0, "float16"), training=True)
    return abs(float(layer.moving_mean.numpy()[0]) - 3 * (1 - 0.999**2000)) > 0.05


def an_error_does_not_name_what_it_received(layer_class):
    """rmax below rmin prints the names in braces."""
    with pytest.raises(ValueError) as error:
        layer_class(renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 2.0})
    return "0.5" not in str(error.value)


def an_axis_out_of_range_is_an_index_error(layer_class):
    """Without a word on axis or shape."""
    with pytest.raises(Exception) as error:
        layer_class(axis=7)(normal((4, 3)))
    return "axis" not in str(error.value).lower() or isinstance(error.value, IndexError)


FAULTS = [
    replicas_keep_their_own_statistics,
    fit_keeps_the_first_replicas_statistics,
    a_mask_switches_synchronization_off,
    synchronized_variance_cancels,
    one_bad_sample_poisons_the_statistics,
    an_empty_batch_gives_nan,
    a_fully_masked_batch_drags_the_statistics,
    one_value_per_channel_decays_the_variance,
    training_may_not_be_a_tensor,
    axis_may_not_be_a_list,
    a_mask_needs_channels_last,
    impossible_settings_are_accepted,
    float16_statistics,
    an_error_does_not_name_what_it_received,
    an_axis_out_of_range_is_an_index_error,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_keras_has_the_fault_and_batch_norm_has_not(fault):
    assert not fault(BatchNorm)
    assert fault(KERAS), "Keras mended this: say so in README and docstring, and drop the row"


def test_weight_decay_spares_gamma_and_beta_once_excluded():
    """AdamW decays gamma by default; the kernel is to be decayed and the normalizer not."""
    for layer_class in (BatchNorm, KERAS):
        ends = []
        for exclude in (False, True):
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer_class()])
            optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
            if exclude:
                exclude_from_weight_decay(optimizer, model)
            optimizer.build(model.trainable_variables)
            kernel = np.abs(model.layers[0].kernel.numpy()).sum()
            optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])
            assert np.abs(model.layers[0].kernel.numpy()).sum() < kernel
            ends.append(float(model.layers[1].gamma.numpy()[0]))
        assert ends[0] < 1 and ends[1] == 1


# ---------------------------------------------------------------- guards


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


def test_the_last_batch_of_one_is_counted_in_fit():
    model = keras.Sequential([keras.Input((3,)), BatchNorm(momentum=0.9)])
    model.compile("sgd", "mse")
    x = normal((129, 3))
    model.fit(x, x, batch_size=128, shuffle=False, verbose=0)
    assert model.layers[0].skipped_batches == 1
    expected = 0.9 + 0.1 * x[:128].var(0)
    np.testing.assert_allclose(model.layers[0].moving_variance, expected, rtol=1e-4)


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
