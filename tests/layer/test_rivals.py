"""The rivals of batch normalization, each against its paper's equation in NumPy's float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES, normal, product_of

from bn_keras.models.layers import (
    SkipInit,
    StandardizedConv1D,
    StandardizedConv2D,
    StandardizedDense,
)
from bn_keras.normalizers.dyt import DynamicTanh
from bn_keras.normalizers.filter_response import FilterResponseNorm
from bn_keras.normalizers.group import GroupNorm
from bn_keras.normalizers.instance import InstanceNorm
from bn_keras.normalizers.rms import RMSNorm
from bn_keras.optimizers import exclude_from_weight_decay

EPSILON = 1e-3
MAKE = {
    "rms": lambda **settings: RMSNorm(epsilon=EPSILON, **settings),
    "instance": lambda **settings: InstanceNorm(epsilon=EPSILON, **settings),
    "filter_response": lambda **settings: FilterResponseNorm(epsilon=EPSILON, **settings),
    "dyt": lambda **settings: DynamicTanh(**settings),
    "group": lambda **settings: GroupNorm(groups=32, epsilon=EPSILON, **settings),
}
SHAPES = {"dense": (5, 6), "series": (4, 7, 6), "image": (3, 4, 5, 6), "one pixel": (5, 1, 1, 6)}


# ---------------------------------------------------------------- the papers' equations


def rms(x, scale):
    return scale * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + EPSILON)


def instance(x, gamma, beta):
    axes = tuple(range(1, x.ndim - 1))
    if all(x.shape[axis] == 1 for axis in axes):
        axes = (-1,)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta


def filter_response(x, gamma, beta, tau, epsilon=None):
    positions = x.reshape(len(x), -1, x.shape[-1])
    squares = np.square(positions).mean(1, keepdims=True) + EPSILON
    if epsilon is not None:
        squares = squares + np.abs(epsilon)
    return np.maximum(gamma * positions / np.sqrt(squares) + beta, tau).reshape(x.shape)


def dyt(x, dyt_alpha, gamma, beta):
    return gamma * np.tanh(dyt_alpha * x) + beta


def group(x, gamma, beta):
    count = 1 if x.ndim == 2 else 2  # 6 channels and 32 groups share 2
    groups = x.reshape(len(x), -1, count, x.shape[-1] // count)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    return gamma * ((groups - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape) + beta


REFERENCE = {
    "rms": rms, "instance": instance, "filter_response": filter_response, "dyt": dyt,
    "group": group,
}


def built(name, shape, dtype, seed=1):
    """A layer with weights as after some training, and these weights by name."""
    layer = MAKE[name](dtype=dtype)
    layer.build(shape)
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) * (1 if weight.name != "tau" else -0.5))
    values = {weight.name: np.asarray(weight, "float64") for weight in layer.weights}
    return layer, values


TOLERANCE = {"mixed_float16": 2e-3, "float32": 5e-6, "float64": 1e-11}
# Together, so that every layer runs in every dtype in each of the ways: casts depend on both.
WAYS = {f"{dtype}-{mode}": (dtype, MODES[mode]) for dtype in TOLERANCE for mode in MODES}


@product_of(
    name=list(MAKE), way=WAYS, shape=["dense", "image"],
    data={"near": (0.3, 2.0), "far": (1e4, 2.0), "constant": (3.0, 0.0)},
)
def test_a_layer_computes_its_papers_equation(name, way, shape, data):
    (dtype, mode), shape, (mean, deviation) = way, SHAPES[shape], data
    tolerance = TOLERANCE[dtype]
    layer, weights = built(name, shape, dtype)
    x = keras.ops.cast(normal(shape, mean, deviation, dtype="float64"), layer.compute_dtype)
    found = mode(layer)(x)
    assert found.dtype.name == layer.compute_dtype
    if name == "group":  # Keras's own arithmetic loses digits, and most of them far from zero
        tolerance *= 5 if mean < 10 else 1000
    expected = REFERENCE[name](np.asarray(keras.ops.cast(x, "float64")), **weights)
    np.testing.assert_allclose(
        np.asarray(keras.ops.cast(found, "float64")), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_those_of_the_equation_by_finite_differences(name, shape):
    shape = SHAPES[shape]
    layer, weights = built(name, shape, "float64")
    x, dy = normal(shape, 0.3, 2.0, dtype="float64"), normal(shape, seed=2, dtype="float64")
    source = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(source)
        outputs = layer(source)
    sources = {"x": source, **{weight.name: weight.value for weight in layer.weights}}
    found = tape.gradient(outputs, sources, output_gradients=tf.constant(dy))
    values = {"x": x, **weights}
    for key, value in values.items():
        expected = np.zeros(value.shape)
        for place in np.ndindex(*value.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = value.copy()
                moved[place] += step
                ends.append(np.sum(dy * REFERENCE[name](**{**values, key: moved})))
            expected[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("shape", ["dense", "image"])
@pytest.mark.parametrize("name", MAKE)
def test_a_saved_layer_predicts_alike(name, shape, tmp_path):
    shape = SHAPES[shape]
    layer, _ = built(name, shape, "float32")
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == layer.get_config()
    x = normal(shape, 0.3, 2.0)
    np.testing.assert_array_equal(again(x), model(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["rms", "instance", "filter_response", "dyt"])
def test_padding_behind_a_mask_changes_nothing(name, mode):
    short = normal((3, 4, 6), 2.0)
    padded = np.concatenate([short, np.zeros((3, 2, 6), "float32")], 1)
    layer, _ = built(name, (3, 6, 6), "float32")
    average = keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential([keras.Input((None, 6)), keras.layers.Masking(0.0), layer, average])
    np.testing.assert_allclose(MODES[mode](model)(padded), average(layer(short)), rtol=2e-5)


@pytest.mark.parametrize("name", ["instance", "filter_response"])
def test_a_series_without_any_position_is_finite(name):
    layer, _ = built(name, (2, 3, 6), "float32")
    x = np.full((2, 3, 6), np.inf, "float32")
    x[1] = normal((3, 6))
    mask = np.array([[False] * 3, [True] * 3])
    outputs = np.asarray(layer(np.where(mask[..., None], x, 0), mask=mask))
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(layer(x, mask=mask)[1], layer(x[1:])[0], rtol=1e-4)


@pytest.mark.parametrize("shape", ["dense", "image"])
@pytest.mark.parametrize("name", MAKE)
def test_weight_decay_can_be_kept_from_every_weight(name, shape):
    layer, _ = built(name, SHAPES[shape], "float32")
    model = keras.Sequential([keras.Input(SHAPES[shape][1:]), layer, SkipInit()])
    optimizer = exclude_from_weight_decay(keras.optimizers.AdamW(0.1), model)
    optimizer.build(model.trainable_variables)
    assert len(model.trainable_variables) > 1
    assert not any(optimizer._use_weight_decay(weight) for weight in model.trainable_variables)


@pytest.mark.parametrize("name", ["instance", "filter_response", "dyt"])
def test_a_number_of_channels_that_is_not_fixed_is_refused(name):
    with pytest.raises(ValueError, match=r"inputs of shape \(3, None\); expected .*channels"):
        MAKE[name]().build((3, None))


def test_instance_normalization_is_exact_far_from_zero():
    x = normal((2, 60, 60, 3), 1e4)
    expected = instance(x.astype("float64"), 1.0, 0.0)
    np.testing.assert_allclose(InstanceNorm(epsilon=EPSILON)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape, learned", [
    ((5, 6), True), ((5, 1, 1, 6), True), ((5, 1, 2, 6), False), ((5, None, 6), False),
], ids=str)
def test_filter_response_learns_epsilon_where_there_is_one_position(shape, learned):
    layer = FilterResponseNorm()
    layer.build(shape)
    names = {weight.name for weight in layer.weights}
    assert names == {"gamma", "beta", "tau"} | ({"epsilon"} if learned else set())
    if learned:
        np.testing.assert_allclose(layer.learned_epsilon, np.full(6, 1e-4, "float32"))


def test_a_threshold_of_zero_is_relu_and_none_at_all_is_the_normalization_alone():
    x = normal((3, 5, 4))
    alone = FilterResponseNorm(threshold=False)
    np.testing.assert_array_equal(FilterResponseNorm()(x), np.maximum(alone(x), 0))
    assert {weight.name for weight in alone.weights} == {"gamma", "beta"}


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 16), (7, 1), (10, 2), (1, 1)])
def test_groups_are_those_that_the_channels_can_make(channels, groups):
    layer = GroupNorm(groups=32)
    layer.build((None, 4, channels))
    assert layer.groups == groups == layer.get_config()["groups"]


@pytest.mark.parametrize("channels, groups", [(512, 32), (64, 4), (48, 3), (32, 2), (20, 1)])
def test_a_group_behind_a_dense_layer_has_enough_values_for_a_variance(channels, groups):
    """With one value a group, or two, outputs would be constant, or signs."""
    layer = GroupNorm(groups=32)
    x = normal((5, channels))
    outputs = np.asarray(layer(x))
    assert layer.groups == groups == GroupNorm.from_config(layer.get_config()).groups
    parts = x.reshape(5, groups, -1)
    expected = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(
        parts.var(-1, keepdims=True) + layer.epsilon)
    np.testing.assert_allclose(outputs, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- weight standardization

STANDARDIZED = {
    "conv1d": (StandardizedConv1D(4, 3, padding="same"), keras.layers.Conv1D, (2, 9, 3)),
    "conv2d": (StandardizedConv2D(4, 3, strides=2), keras.layers.Conv2D, (2, 7, 8, 3)),
    "dense": (StandardizedDense(4), keras.layers.Dense, (5, 6)),
}


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16"])
@pytest.mark.parametrize("name", STANDARDIZED)
def test_a_standardized_layer_is_keras_s_with_another_kernel(name, policy):
    layer, kind, shape = STANDARDIZED[name]
    config = {**layer.get_config(), "dtype": policy, "bias_initializer": "ones"}
    ours, theirs = type(layer).from_config(config), kind.from_config({**config, "dtype": "float64"})
    x = normal(shape, 1.0, dtype="float64")
    ours.build(shape)
    theirs.build(shape)
    kernel = normal(ours.kernel.shape, 2.0, 0.5).astype("float64")
    ours.kernel.assign(kernel)
    assert ours.kernel.dtype == policy.replace("mixed_bfloat16", "float32")
    axes = tuple(range(kernel.ndim - 1))
    deviation = np.sqrt(kernel.var(axes) + 1e-5)
    theirs.set_weights([(kernel - kernel.mean(axes)) / deviation, np.ones(4)])
    found = ours(x)
    assert found.dtype.name == policy.replace("mixed_", "")
    tolerance = {"float32": 1e-4, "float64": 1e-10, "mixed_bfloat16": 5e-2}[policy]
    np.testing.assert_allclose(
        np.asarray(keras.ops.cast(found, "float64")), theirs(x), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", STANDARDIZED)
def test_a_saved_standardized_layer_has_the_kernel_that_is_trained(name, tmp_path):
    layer, _, shape = STANDARDIZED[name]
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.layers[0].kernel.numpy(), layer.kernel.numpy())
    np.testing.assert_array_equal(again(normal(shape)), model(normal(shape)))
