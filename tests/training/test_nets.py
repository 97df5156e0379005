"""The nets from blocks: sizes, depth, shortcuts, shapes, and what normalizers do in them."""

import dataclasses
import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import models_with_normalizers, normal, product_of

from bn_keras.config import ConfigError, RunConfig
from bn_keras.data import Split, Splits
from bn_keras.models.blocks import Blocks, ModelSpec, normalizers
from bn_keras.models.layers import SkipInit, StandardizedConv1D, StandardizedConv2D
from bn_keras.nets import build as build_net
from bn_keras.registry import LOSSES, MODELS, NORMALIZERS
from bn_keras.surgery.digest import kernel_digest


def splits(shape=(28, 28, 1), classes=10):
    images = np.random.default_rng(0).integers(0, 255, (12, *shape)).astype(np.uint8)
    part = Split(images, (np.arange(12) % classes).astype(np.int32))
    return Splits(part, part, part, classes=classes)


def build(model, normalizer="none", shape=(28, 28, 1), classes=10, **settings):
    config = RunConfig(model=model, normalizer=normalizer, **settings)
    return build_net(config, splits(shape, classes))


def kernels(model):
    return [layer for layer in model.layers if hasattr(layer, "kernel")]


@pytest.mark.parametrize("model, weights", [
    ("plain_cnn", 287_722), ("resnet", 268_746), ("cnn1d", 292_618),
])
def test_a_net_has_the_weights_that_its_docstring_counts(model, weights):
    assert build(model).count_params() == weights
    assert f"{weights:,} weights" in MODELS.get(model).__doc__


def test_the_denoiser_has_the_weights_that_its_docstring_counts():
    assert build("denoiser", classes=1).count_params() == 37_601
    assert "37,601 weights" in MODELS.get("denoiser").__doc__


@pytest.mark.parametrize("model, own, other", [
    ("plain_cnn", 6, 9), ("resnet", 20, 32), ("denoiser", 6, 17), ("deep_mlp", 5, 9),
])
def test_depth_counts_layers(model, own, other):
    not_counted = {"plain_cnn": 1, "deep_mlp": 1}.get(model, 0)  # the logits' layer
    assert len(kernels(build(model))) == own + not_counted
    assert len(kernels(build(model, depth=other))) == other + not_counted


def test_the_stages_of_the_plain_net_share_an_uneven_depth():
    filters = [layer.filters for layer in kernels(build("plain_cnn", depth=8))[:-1]]
    assert filters == [32, 32, 32, 64, 64, 64, 128, 128]
    sizes = [layer.output.shape[1] for layer in kernels(build("plain_cnn", depth=3))[:-1]]
    assert sizes == [28, 14, 7]


@pytest.mark.parametrize("settings, message", [
    ({"model": "resnet", "depth": 9}, "depth=9: expected one of 8, 14, 20"),
    ({"model": "plain_cnn", "depth": 2}, "depth=2: expected one of 3, 4, 5"),
    ({"model": "mnist_cnn", "depth": 3}, "depth=3: the depth of mnist_cnn is fixed"),
    ({"model": "plain_cnn", "shape": (3, 9, 1)}, "at least 4 positions"),
    ({"model": "resnet", "shape": (7,)}, "expected images, .height, width, channels., or series"),
    ({"model": "plain_cnn", "normalizer": "skipinit"}, "plain_cnn has no residual branches"),
], ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())))
def test_a_setting_that_a_net_has_no_place_for_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


# ---------------------------------------------------------------- residual branches


def blocks_of(normalizer="none", **settings):
    spec = ModelSpec((5, 5, 2), 3, NORMALIZERS.get(normalizer), **settings)
    return Blocks(spec)


def test_a_shortcut_takes_every_second_pixel_and_appends_zeros():
    x, branch = keras.Input((5, 5, 2)), keras.Input((3, 3, 4))
    net = keras.Model([x, branch], blocks_of().residual(x, branch, "block"))
    values, added = normal((2, 5, 5, 2)), normal((2, 3, 3, 4), seed=1)
    expected = added.copy()
    expected[..., :2] += values[:, ::2, ::2]
    np.testing.assert_allclose(net([values, added]), np.maximum(expected, 0), rtol=1e-6)


@pytest.mark.slow
def test_branches_with_skipinit_start_switched_off_and_learn_to_switch_on():
    net = build("resnet", "skipinit", depth=8, dtype_policy="float64")
    factors = [layer for layer in net.layers if isinstance(layer, SkipInit)]
    assert len(factors) == 3
    images = splits().train.images
    before = np.asarray(net(images))
    for layer in kernels(net):
        if "block" in layer.name:
            layer.kernel.assign(-3 * layer.kernel)
    np.testing.assert_array_equal(net(images), before)
    train(net, images, splits().train.labels, "softmax", rate=0.1)
    assert all(abs(float(layer.alpha)) > 0 for layer in factors)
    assert not any(isinstance(layer, SkipInit) for layer in build("resnet", "none").layers)


# ---------------------------------------------------------------- normalizers that need the net


@pytest.mark.parametrize("model, kind", [
    ("plain_cnn", StandardizedConv2D), ("cnn1d", StandardizedConv1D),
])
def test_layers_with_a_normalizer_behind_them_are_standardized_and_others_are_not(model, kind):
    net = build(model, "weight_standardized_group")
    places = {place.name.removesuffix("_norm") for place in normalizers(net)}
    for layer in kernels(net):
        assert isinstance(layer, kind) == (layer.name in places), layer.name
    assert not any(isinstance(layer, kind) for layer in build(model, "group").layers)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_threshold_of_filter_response_takes_the_activations_place(activation):
    net = build("plain_cnn", "filter_response", activation=activation)
    assert not any(layer.name.endswith(f"_{activation}") for layer in net.layers)
    assert all(place.threshold for place in normalizers(net))
    logits = normalizers(build("mnist_cnn", "filter_response"))[-1]
    assert not logits.threshold and logits.learned_epsilon is not None


@pytest.mark.slow
def test_filter_response_keeps_the_runs_of_a_stack_apart():
    config = RunConfig(model="deep_mlp", normalizer="filter_response", dtype_policy="float64")
    data = splits((4, 4, 1))
    alone = [build_net(dataclasses.replace(config, seed=seed), data) for seed in range(3)]
    stack = build_net(config, data, runs=3)
    rng = np.random.default_rng(0)
    for variable, *values in zip(stack.variables, *(net.variables for net in alone), strict=True):
        for value in values:
            value.assign(value + rng.uniform(0, 0.1, value.shape))
        variable.assign(np.stack([value.numpy() for value in values]).reshape(variable.shape))
    images = rng.integers(0, 255, (5, 3, 4, 4, 1))
    together = np.asarray(stack(images))
    for run, net in enumerate(alone):
        np.testing.assert_allclose(together[:, run], net(images[:, run]), rtol=1e-9)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", [(30, 2), (9,), (6, 5, 2), (1, 1)], ids=str)
def test_the_series_net_takes_series_features_and_the_rows_of_images(shape):
    net = build("cnn1d", "batch", shape)
    assert net.get_layer("series").output.shape == (None, shape[0], int(np.prod(shape[1:])))
    assert net(np.zeros((2, *shape), np.uint8)).shape == (2, 10)


@pytest.mark.parametrize("model", ["plain_cnn", "resnet", "conv_bn_relu", "mnist_cnn"])
def test_a_net_of_images_takes_series_as_images_of_one_direction(model):
    net = build(model, "weight_standardized_group", (16, 3))
    assert net(np.zeros((2, 16, 3), np.uint8)).shape == (2, 10)
    assert any(isinstance(layer, StandardizedConv1D) for layer in net.layers)


def test_the_denoiser_subtracts_what_its_last_layer_predicts():
    net = build("denoiser", "batch", (6, 7, 2), classes=2)
    images = splits((6, 7, 2)).train.images
    kernels(net)[-1].kernel.assign(keras.ops.zeros_like(kernels(net)[-1].kernel))
    np.testing.assert_allclose(net(images), images / 255, rtol=1e-5)
    assert build("denoiser", "batch", (6, 7, 2), classes=3).output.shape == (None, 6, 7, 3)


@product_of(
    model=["plain_cnn", "resnet", "cnn1d", "denoiser"],
    policy=["float64", "mixed_bfloat16", "mixed_float16"], activation=["tanh", "gelu"],
)
def test_a_net_runs_under_every_policy_and_activation(model, policy, activation):
    settings = {"dtype_policy": policy, "activation": activation}
    if model != "cnn1d":
        settings["depth"] = 8
    net = build(model, "batch", (8, 8, 1), classes=1, **settings)
    outputs = net(splits((8, 8, 1)).train.images, training=True)
    assert outputs.dtype.name == ("float64" if policy == "float64" else "float32")
    assert np.isfinite(outputs).all()
    assert any(layer.name.endswith(f"_{activation}") for layer in net.layers)


# ---------------------------------------------------------------- models with normalizers


def train(net, images, labels, loss, rate=1e-3, steps=3):
    """Losses of a few steps of SGD on all examples; eagerly, as tracing every net takes minutes."""
    losses = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            outputs = net(images, training=True)
            losses.append(tf.reduce_mean(LOSSES.get(loss)(labels, outputs)))
        weights = [weight.value for weight in net.trainable_variables]
        for weight, gradient in zip(weights, tape.gradient(losses[-1], weights), strict=True):
            weight.assign_sub(tf.cast(rate, weight.dtype) * gradient)
    return np.array(losses)


REACHING = ("filter_response", "weight_standardized_group")  # they change the net around them
PAIRS = dict.fromkeys([
    *models_with_normalizers(MODELS.names()), *itertools.product(MODELS.names(), REACHING)
])
SMALLEST = {"plain_cnn": 3, "resnet": 8, "denoiser": 3, "deep_mlp": 1, "deep_mlp_logits": 1}


def small(model, normalizer, seed=3):
    # Without dropout every step lowers the loss.
    dropout = 0.0 if model == "mnist_cnn" else None
    return build(model, normalizer, (10, 10, 1), classes=3, depth=SMALLEST.get(model), seed=seed,
                 dropout=dropout)


@functools.cache
def start_without(model, seed):
    return kernel_digest(small(model, "none", seed))


@pytest.mark.slow
@pytest.mark.parametrize("model, normalizer", PAIRS)
def test_a_model_learns_with_a_normalizer_and_comes_back_from_a_file(model, normalizer, tmp_path):
    net = small(model, normalizer)
    assert kernel_digest(net) == start_without(model, 3) != start_without(model, 4)
    properties, data = MODELS.properties(model), splits((10, 10, 1), classes=3).train
    labels = data.labels
    if properties["loss"] == "squared":
        shape = (12, 10, 10, 3) if properties.get("images_out") else (12, 3)
        labels = normal(shape, seed=1)
    # Behind a dense layer filter response is little more than a sign: large steps jump over it.
    rate = 1e-6 if normalizer == "filter_response" else 1e-4
    losses = train(net, data.images, labels, properties["loss"], rate)
    assert losses[-1] < losses[0]
    net.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(again(data.images), net(data.images))
