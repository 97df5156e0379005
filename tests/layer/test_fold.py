"""Folded models predict what the given ones predict; what cannot be folded is left and named."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import NAMES, ZOO, inputs_of

import bn_keras
from bn_keras.surgery.certificate import OutputsDiffer
from bn_keras.surgery.fold import fold
from bn_keras.surgery.linear import LINEAR

BN = layers.BatchNormalization


def stirred(model, seed=0):
    """The model, with statistics, gammas, betas and biases that do something."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for name, low, high in (
            ("moving_mean", -1, 1), ("moving_variance", 0.3, 3), ("gamma", -1.5, 1.5),
            ("beta", -1, 1), ("bias", -1, 1),
        ):
            variable = getattr(layer, name, None)
            if isinstance(variable, keras.Variable):
                variable.assign(rng.uniform(low, high, variable.shape))
    return model


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")


def quiet(*arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fold(*arguments, **keywords)


def fates(certificate):
    return {row.path: row.fate for row in certificate.rows}


SHAPES = {"flat": (5,), "line": (9, 4), "image": (7, 6, 4), "volume": (5, 4, 3, 2)}


# Each is a branch of one model: name → (input, layers in a row). All of them are folded.
BEHIND = {
    "dense": ("flat", layers.Dense, dict(units=3)),
    "dense_of_rank_3": ("line", layers.Dense, dict(units=3, use_bias=False)),
    "conv1d": ("line", layers.Conv1D, dict(filters=3, kernel_size=3, padding="causal")),
    "conv2d": ("image", layers.Conv2D, dict(filters=3, kernel_size=3, padding="same")),
    "conv2d_of_strides": ("image", layers.Conv2D, dict(filters=3, kernel_size=2, strides=2)),
    "conv2d_of_dilation": (
        "image", layers.Conv2D, dict(filters=3, kernel_size=2, dilation_rate=2)),
    "conv2d_of_groups": ("image", layers.Conv2D, dict(filters=6, kernel_size=3, groups=2)),
    "conv3d": ("volume", layers.Conv3D, dict(filters=3, kernel_size=2)),
    # Its kernel has the axes of inputs and outputs the other way round (litert-torch #28, #122).
    "conv1d_transpose": ("line", layers.Conv1DTranspose, dict(filters=4, kernel_size=3)),
    "conv2d_transpose": (
        "image", layers.Conv2DTranspose, dict(filters=3, kernel_size=3, strides=2)),
    "conv2d_transpose_square": (
        "image", layers.Conv2DTranspose, dict(filters=4, kernel_size=2, padding="same")),
    "conv3d_transpose": ("volume", layers.Conv3DTranspose, dict(filters=3, kernel_size=2)),
    "depthwise1d": ("line", layers.DepthwiseConv1D, dict(kernel_size=3, depth_multiplier=2)),
    "depthwise2d": ("image", layers.DepthwiseConv2D, dict(kernel_size=3, depth_multiplier=3)),
    "separable1d": ("line", layers.SeparableConv1D, dict(filters=3, kernel_size=3)),
    "separable2d": (
        "image", layers.SeparableConv2D,
        dict(filters=3, kernel_size=3, depth_multiplier=2, padding="same")),
}
# The same with the normalization in front; padding that makes outputs differ is elsewhere.
IN_FRONT = {
    "dense": BEHIND["dense"],
    "dense_of_rank_3": BEHIND["dense_of_rank_3"],
    "conv1d": ("line", layers.Conv1D, dict(filters=3, kernel_size=3, strides=2)),
    "conv2d": ("image", layers.Conv2D, dict(filters=3, kernel_size=3, activation="relu")),
    "conv2d_of_groups": BEHIND["conv2d_of_groups"],
    "conv2d_of_points": (
        "image", layers.Conv2D, dict(filters=3, kernel_size=1, strides=2, padding="same")),
    "conv3d": BEHIND["conv3d"],
    "conv2d_transpose_of_points": (
        "image", layers.Conv2DTranspose, dict(filters=3, kernel_size=1)),
    "depthwise1d": BEHIND["depthwise1d"],
    "depthwise2d": BEHIND["depthwise2d"],
    "separable1d": BEHIND["separable1d"],
    "separable2d": (
        "image", layers.SeparableConv2D, dict(filters=3, kernel_size=3, depth_multiplier=2)),
}
# Without gamma or beta (litert-torch #162, #317), and every class that is a plain one in inference.
NORMS = [
    BN,
    lambda name: BN(center=False, name=name),
    lambda name: BN(scale=False, name=name),
    lambda name: BN(center=False, scale=False, epsilon=0.1, name=name),
    bn_keras.BatchNorm,
    lambda name: bn_keras.FrozenBatchNorm(freeze="statistics", name=name),
    lambda name: bn_keras.GhostBatchNorm(virtual_batch_size=2, name=name),
    lambda name: bn_keras.BatchRenorm(name=name),
    lambda name: BN(renorm=True, name=name),
    lambda name: BN(trainable=False, name=name),
]


def net_of_pairs():
    inputs = {name: keras.Input(shape, name=name) for name, shape in SHAPES.items()}
    outputs, number = {}, 0
    for place, table in (("behind", BEHIND), ("in_front", IN_FRONT)):
        for name, (given, kind, arguments) in table.items():
            norm = NORMS[number % len(NORMS)](name=f"{place}_{name}")
            linear = kind(**{"use_bias": number % 3 > 0, **arguments})
            number += 1
            row = [linear, norm] if place == "behind" else [norm, linear]
            x = inputs[given]
            for layer in row:
                x = layer(x)
            outputs[norm.name] = layers.Activation("tanh")(x)
    assert {kind for _, kind, _ in BEHIND.values()} == set(LINEAR) and number > 2 * len(NORMS)
    return stirred(keras.Model(inputs, outputs))


def random(shapes, count=3, seed=1):
    rng = np.random.default_rng(seed)
    return keras.tree.map_shape_structure(lambda shape: rng.normal(size=(count, *shape)), shapes)


def test_every_linear_layer_takes_in_the_normalization_behind_it_or_in_front_of_it(float64):
    model, x = net_of_pairs(), random(SHAPES)
    before = {v.path: v.numpy() for v in model.variables}
    expected = model(x)
    folded, certificate = quiet(model, inputs=x)
    assert set(fates(certificate).values()) == {"folded"}
    assert len(certificate.rows) == len(BEHIND) + len(IN_FRONT)
    assert not any(isinstance(layer, BN) for layer in folded._flatten_layers())
    assert len(folded.layers) == len(model.layers) - len(certificate.rows)
    actual = folded(x)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-11, atol=1e-12, err_msg=name)
    for variable in model.variables:
        np.testing.assert_array_equal(variable, before[variable.path])
