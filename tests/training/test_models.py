"""The nets: published sizes, equal starts, the pooling order, dtypes, stacked layers."""

import functools

import keras
import numpy as np
import pytest

from bn_keras.models.blocks import Blocks, Dense, ModelSpec, StackedDense, normalizers
from bn_keras.registry import MODELS, NORMALIZERS


def build(model, normalizer="batch", seed=0, **changes):
    dtype = changes.get("dtype", "float32")
    factory = functools.partial(
        NORMALIZERS.get(normalizer), momentum=0.9, epsilon=1e-3, dtype=dtype
    )
    spec = ModelSpec((28, 28, 1), 10, factory, scale=1 / 255, seed=seed, **changes)
    return MODELS.get(model)(spec)


def test_mnist_cnn_is_the_specified_net():
    model = build("mnist_cnn", "none")
    shapes = {weight.path.split("/")[0] + "/" + weight.name: tuple(weight.shape)
              for weight in model.trainable_weights}
    assert shapes == {
        "conv1/kernel": (5, 5, 1, 32), "conv1/bias": (32,),
        "conv2/kernel": (5, 5, 32, 64), "conv2/bias": (64,),
        "dense1/kernel": (3136, 1024), "dense1/bias": (1024,),
        "dense2/kernel": (1024, 10), "dense2/bias": (10,),
    }
    assert [layer.name for layer in normalizers(model)] == [
        "conv2_norm", "dense1_norm", "dense2_norm"
    ]
    kernel = model.get_layer("dense1").kernel.numpy()
    # A normal of .1 cut at two standard deviations has a standard deviation of .088.
    assert kernel.std() == pytest.approx(0.088, abs=0.001) and np.abs(kernel).max() <= 0.2
    assert (model.get_layer("conv1").bias.numpy() == np.float32(0.1)).all()
    assert model.get_layer("dropout").rate == 0.5


def test_conv_bn_relu_is_the_specified_net():
    model = build("conv_bn_relu")
    assert model.get_layer("conv1").output.shape == (None, 26, 26, 32)
    assert model.get_layer("conv2").output.shape == (None, 11, 11, 64)
    assert model.get_layer("dense").kernel.shape == (5 * 5 * 64, 10)
    assert [layer.name for layer in normalizers(model)] == ["conv1_norm", "conv2_norm"]


@pytest.mark.parametrize("model", MODELS.names())
def test_a_bias_stands_only_where_no_normalizer_has_an_offset(model):
    net = build(model, "batch")
    for layer in net.layers:
        if hasattr(layer, "use_bias"):
            followed = any(norm.name == f"{layer.name}_norm" for norm in normalizers(net))
            assert layer.use_bias != followed, layer.name
    without = build(model, "none").layers
    assert all(layer.use_bias for layer in without if hasattr(layer, "use_bias"))


@pytest.mark.parametrize("model", MODELS.names())
def test_another_seed_gives_other_weights_and_every_layer_its_own(model):
    first, second = build(model), build(model, seed=1)
    kernels = [weight.numpy() for weight in first.weights if weight.name == "kernel"]
    others = [weight.numpy() for weight in second.weights if weight.name == "kernel"]
    for one, other in zip(kernels, others, strict=True):
        assert not np.array_equal(one, other)
    draws = [kernel.ravel()[:50] for kernel in kernels]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


@pytest.mark.parametrize("activation, moved", [("relu", True), ("tanh", True), ("gelu", False)])
def test_pooling_comes_first_only_where_the_function_stays_the_same(activation, moved):
    spec = ModelSpec((8, 8, 2), 10, NORMALIZERS.get("none"), activation=activation)
    blocks = Blocks(spec)
    inputs, x = blocks.inputs()
    outputs = blocks.conv(x, 4, 3, "conv", normalize=False, pool=2)
    model = keras.Model(inputs, outputs)
    names = [layer.name for layer in model.layers]
    order = names.index("conv_pool") < names.index(f"conv_{activation}")
    assert order == moved
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype("float32")
    before = keras.layers.Activation(activation)(model.get_layer("conv")(images))
    expected = keras.layers.MaxPooling2D(2)(before)
    np.testing.assert_allclose(model(images), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.names())
@pytest.mark.parametrize(
    "dtype, logits", [("mixed_bfloat16", "float32"), ("mixed_float16", "float32"),
                      ("float64", "float64")]
)
def test_logits_leave_in_float32_at_least(model, dtype, logits):
    images = np.zeros((2, 28, 28, 1), np.uint8)
    built = build(model, dtype=dtype)
    assert keras.backend.standardize_dtype(built(images).dtype) == logits
    computing = next(layer for layer in built.layers if hasattr(layer, "kernel"))
    assert computing.compute_dtype == dtype.removeprefix("mixed_")


def activated(model, activation="relu", **changes):
    return build(model, "activated", activation=activation, **changes)


def shake(*models):
    """The same weights for models of equal layers, none of them as it starts."""
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 0.3, weight.shape) for weight in models[0].weights]
    for model in models:
        for weight, value in zip(model.weights, values, strict=True):
            weight.assign(np.abs(value) if "variance" in weight.name else value)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("model", MODELS.names())
def test_a_normalizer_with_its_activation_gives_the_same_net_as_one_without(model, activation):
    """Hidden layers are activated once, with the net's own activation, and logits never."""
    one, other = activated(model, activation), build(model, activation=activation)
    shake(one, other)
    images = np.random.default_rng(1).integers(0, 255, (4, 28, 28, 1), np.uint8)
    logits = np.asarray(one(images))
    np.testing.assert_allclose(logits, other(images), rtol=1e-4, atol=1e-4)
    assert logits.min() < 0 < logits.max()
    behind = [layer for layer in one.layers if layer.name.endswith(f"_{activation}")]
    fused = [layer.activation.__name__ for layer in normalizers(one)]
    plain = len([layer for layer in other.layers if layer.name.endswith(f"_{activation}")])
    assert fused.count(activation) + len(behind) == plain
    if model == "mnist_cnn":
        assert fused == [activation, activation, "linear"]


@pytest.mark.slow
def test_a_stack_of_runs_with_activated_normalizers_gives_each_its_own_logits():
    stack, alone = activated("deep_mlp_logits", runs=2), activated("deep_mlp_logits")
    shake(alone)
    for weight, value in zip(stack.weights, alone.weights, strict=True):
        weight.assign(np.stack([value, value]).reshape(weight.shape))
    images = np.random.default_rng(1).integers(0, 255, (4, 28, 28, 1), np.uint8)
    both = np.asarray(stack(np.stack([images, images], 1)))
    for run in range(2):
        np.testing.assert_allclose(both[:, run], alone(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [True, False], ids=["with a bias", "without"])
def test_a_dense_layer_computes_what_keras_does(use_bias):
    settings = {"use_bias": use_bias, "bias_initializer": "ones"}
    ours, theirs = Dense(3, **settings), keras.layers.Dense(3, **settings)
    images = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    theirs.build((None, 4))
    ours.build((None, 4))
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


def test_a_stacked_layer_multiplies_every_run_with_its_own_kernel():
    rng = np.random.default_rng(0)
    layer = StackedDense(2, 3, bias_initializer="ones")
    rows = rng.normal(size=(5, 2, 4)).astype("float32")
    found = np.asarray(layer(rows.reshape(5, 8))).reshape(5, 2, 3)
    kernel = layer.kernel.numpy()
    for run in range(2):
        np.testing.assert_allclose(found[:, run], rows[:, run] @ kernel[run] + 1, rtol=1e-5)


def test_a_stacked_layer_comes_back_from_its_configuration():
    layer = StackedDense(
        2, 3, use_bias=False, kernel_initializer=keras.initializers.HeNormal(seed=5),
        kernel_regularizer="l2",
    )
    again = StackedDense.from_config(layer.get_config())
    rows = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(again(rows), layer(rows))
    assert again.get_config() == layer.get_config() and again.bias is None
    assert float(sum(again.losses)) > 0
