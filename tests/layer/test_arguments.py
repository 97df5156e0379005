"""What BatchNorm refuses and how it says so; what it takes as Keras's layer does."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES, RENORM, product_of

from bn_keras import BatchNorm

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(2.0, 1.0, (6, 3)).astype("float32")


# ------------------------------------------------------------ schedules

NO_MOMENTUM = {"1.5": 1.5, "nan": float("nan"), "inf": float("inf"), "-0.5": -0.5}


def after_one_update(value):
    """A schedule whose first momentum is .5, and every later one the given value."""
    return lambda updates: tf.where(updates < 1, 0.5, value)


@pytest.mark.parametrize("told", NO_MOMENTUM)
def test_a_schedule_that_gives_no_momentum_is_refused_by_its_value(told):
    layer = BatchNorm(momentum=after_one_update(NO_MOMENTUM[told]))
    layer(X, training=True)
    before = layer.get_weights()
    with pytest.raises(ValueError, match=f"gave {told} after 1 updates; expected 0 <= momentum"):
        layer(X, training=True)
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@product_of(told=list(NO_MOMENTUM), mode=["graph", "xla"], renorm=RENORM)
def test_a_graph_leaves_out_a_batch_for_which_a_schedule_gives_no_momentum(told, mode, renorm):
    layer = BatchNorm(momentum=after_one_update(NO_MOMENTUM[told]), renorm=renorm)
    layer.build(X.shape)
    step = MODES[mode](lambda x: layer(x, training=True))
    step(tf.constant(X))
    before = layer.get_weights()
    for turn in range(2):
        step(tf.constant(X))
        assert layer.skipped_batches == turn + 1
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


# ------------------------------------------------------------ refusals

REFUSED = [
    *({"epsilon": value} for value in (1e39, 1e-320, float("inf"), float("nan"), "x", True, None)),
    *({"momentum": value} for value in (True, "x", float("inf"), [0.9])),
    *({"axis": value} for value in (None, "x", 1.5, True, [], [1, 2], {})),
    *({"dtype": value} for value in ("int32", "bool")),
    *({"renorm_clipping": {key: value}, "renorm": True}
      for key in ("rmax", "rmin", "dmax") for value in (float("nan"), "x")),
    *({"gradient_accumulation_steps": value} for value in (0, -1, 1.5, "x", True)),
    *({"renorm_momentum": value} for value in (2.0, "x", float("nan"))),
    *({"replica_group_size": value, "synchronized": True} for value in (0, 1.5, "x", True)),
]


@pytest.mark.parametrize("setting", REFUSED, ids=str)
def test_a_refused_setting_is_named_with_what_was_received(setting):
    with pytest.raises(ValueError) as caught:
        BatchNorm(**setting)
    name, value = next(iter(setting.items()))
    if isinstance(value, dict) and value:
        (key, value), = value.items()
        assert key in str(caught.value)
    assert name in str(caught.value) and repr(value) in str(caught.value)
    assert "xpected" in str(caught.value)


TAKEN = [{"epsilon": 0}, {"epsilon": np.float32(1e-5)}, {"momentum": 0},
         {"momentum": np.float64(1)},
         {"axis": np.int64(1)}, {"axis": 1.0}, {"axis": (-1,)},
         {"renorm": True, "renorm_clipping": {"rmax": None, "dmax": np.float32(2)}}]


@pytest.mark.parametrize("setting", TAKEN, ids=str)
def test_numbers_of_every_kind_are_taken_and_kept_through_the_config(setting):
    layer = BatchNorm(**setting)
    assert np.isfinite(layer(X, training=True)).all()
    again = BatchNorm.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def words_of(make, kind):
    """The text of the exception that a call ends in, up to the received values."""
    with pytest.raises(Exception) as caught:
        make(kind)
    return str(caught.value)


def built(kind):
    layer = kind()
    layer.build(X.shape)
    return layer


KERAS_REFUSES = {
    "an unknown clipping": lambda kind: kind(renorm=True, renorm_clipping={"rmx": 1.0}),
    "clippings the wrong way round": lambda kind: kind(
        renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 2.0}
    ),
    "a negative clipping": lambda kind: kind(renorm=True, renorm_clipping={"dmax": -1.0}),
    "a mask of the wrong rank": lambda kind: built(kind).call(
        tf.constant(X), training=True, mask=tf.ones((6, 3), tf.bool)
    ),
    "a mask of the wrong rank in inference": lambda kind: built(kind).call(
        tf.constant(X), training=False, mask=tf.ones((6, 3), tf.bool)
    ),
    "another rank than built for": lambda kind: built(kind)(np.zeros((2, 2, 3), "f")),
    "other channels than built for": lambda kind: built(kind)(np.zeros((2, 4), "f")),
    "an axis out of the shape": lambda kind: kind(axis=7).compute_output_shape((2, 3)),
    "an unknown argument": lambda kind: kind(momentun=0.9),
    "an unknown initializer": lambda kind: kind(gamma_initializer="nonsense"),
}


@pytest.mark.parametrize("what", KERAS_REFUSES)
def test_a_refusal_has_the_words_of_keras(what):
    """Whoever matches or searches for Keras's message finds it; ours may say more."""
    theirs, ours = (words_of(KERAS_REFUSES[what], kind) for kind in (KERAS, BatchNorm))
    # Up to what was received, if the text does not open with it, or an automatic name.
    words = re.split("(?<=.)Received|batch_normalization", theirs)[0].strip()
    assert len(words) > 20, f"nothing to compare: {theirs}"
    assert words in ours, f"Keras: {theirs}\nours: {ours}"


@pytest.mark.parametrize("mask_shape", [(4,), (5,), (6, 2), (3,)], ids=str)
def test_a_mask_that_does_not_fit_names_both_shapes(mask_shape):
    with pytest.raises(ValueError) as caught:
        BatchNorm()(X, training=True, mask=np.ones(mask_shape, bool))
    assert str(mask_shape) in str(caught.value) and "(6, 3)" in str(caught.value)
    assert "expected (6,)" in str(caught.value)


# ------------------------------------------------------------ inputs


@product_of(
    mode=[*MODES, "open sizes"], training={"training": True, "inference": False},
    shape=[(4, 0), (4, 2, 0), (4, 5, 5, 0)],
)
def test_no_channels_give_no_values_as_in_keras(mode, training, shape):
    for kind in (KERAS, BatchNorm):
        layer = kind()
        layer.build(shape)

        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=training)
            return y, tape.gradient(y, x)

        signature = [tf.TensorSpec([None] * (len(shape) - 1) + [0])]
        modes = {**MODES, "open sizes": lambda f: tf.function(f, input_signature=signature)}
        y, dx = modes[mode](step)(tf.zeros(shape))
        assert y.shape == dx.shape == shape, kind


INPUTS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float16",
          "bfloat16", "float64")


@product_of(
    dtype=INPUTS, policy=["float32", "float64", "mixed_float16", "mixed_bfloat16"],
    autocast={"autocast": True, "as given": False},
)
def test_inputs_of_every_dtype_give_the_outputs_of_keras(dtype, policy, autocast):
    x = tf.cast(np.random.default_rng(0).integers(0, 100, (6, 4, 3)), dtype)
    if dtype == "float64":
        x = x + 1e-3 / 3
    for training in (True, False):
        found = []
        for kind in (KERAS, BatchNorm):
            layer = kind(dtype=policy, autocast=autocast, momentum=0.5)
            y = layer(x, training=training)
            found.append([y, layer.moving_mean.value, layer.moving_variance.value])
        for theirs, ours in zip(*found, strict=True):
            assert ours.dtype == theirs.dtype
            tolerance = {"float16": 1e-3, "bfloat16": 1e-2}.get(ours.dtype.name, 1e-5)
            np.testing.assert_allclose(
                tf.cast(ours, tf.float64), tf.cast(theirs, tf.float64), rtol=tolerance,
                atol=tolerance,
            )


@product_of(
    fast=1,
    mode=MODES,
    settings={
        "plain": {}, "renorm": {"renorm": True}, "cumulative": {"momentum": None},
        "debias": {"debias": True}, "accumulating": {"gradient_accumulation_steps": 2},
    },
)
def test_a_stateless_call_hands_out_what_a_stateful_one_keeps(mode, settings):
    stateful, stateless = BatchNorm(**settings), BatchNorm(**settings)
    for layer in (stateful, stateless):
        layer.build(X.shape)
    start = [np.array(variable.numpy()) for variable in stateless.variables]
    trainable = [variable.value for variable in stateless.trainable_variables]
    state = [variable.value for variable in stateless.non_trainable_variables]
    step = mode(
        lambda trainable, state, x: stateless.stateless_call(trainable, state, x, training=True)
    )
    for turn in range(3):
        x = tf.constant(X * (turn + 1))
        y, state = step(trainable, state, x)
        np.testing.assert_allclose(y, stateful(x, training=True), atol=1e-5)
    for found, variable in zip(state, stateful.non_trainable_variables, strict=True):
        np.testing.assert_allclose(found, variable.value, rtol=1e-5, err_msg=variable.path)
    for variable, value in zip(stateless.variables, start, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    step(trainable, state, tf.constant(np.full_like(X, np.nan)))
    assert stateless.skipped_batches == 0, "a stateless call moved the layer's own counter"


def test_no_parametrization_shrank_to_nothing():
    assert len(REFUSED) >= 35 and len(KERAS_REFUSES) == 10 and len(INPUTS) == 11


@pytest.mark.parametrize("name", ["debias", "unbiased_variance", "explicit_training"])
@pytest.mark.parametrize("value", ["x", 3, None])
def test_a_switch_is_on_or_off(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}; expected True or False"):
        BatchNorm(**{name: value})


def test_update_statistics_is_on_or_off():
    layer = BatchNorm()
    with pytest.raises(ValueError, match="update_statistics='no'; expected True or False"):
        layer(np.ones((4, 3), "float32"), training=True, update_statistics="no")
    assert layer.moving_mean.numpy().tolist() == [0, 0, 0]
