"""Folded models predict what the given ones predict; what cannot be folded is left and named."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers
from zoo import NAMES, ZOO, inputs_of

import bn_keras
from bn_keras.surgery import fold as fold_module
from bn_keras.surgery.certificate import OutputsDiffer, random_inputs
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


@pytest.mark.slow
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


class OwnDense(layers.Dense):
    """Computes something else than its base."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class Renamed(layers.Dense):
    """A default of its own and nothing else."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)


class Clipped(BN):
    """Computes something else than its base."""

    def call(self, inputs, training=None, mask=None):
        return keras.ops.clip(super().call(inputs, training, mask), -1, 1)


def left_cases(flat, line, image):
    """Outputs with a normalization each that must stay, by name; and the reason."""
    dense, conv = layers.Dense, layers.Conv2D

    def row(x, *following):
        for layer in following:
            x = layer(x)
        return x

    def bn(name, **settings):
        return BN(name=name, **settings)

    fork = conv(3, 3, name="fork")(image)
    outward = dense(3)(flat)
    two = dense(3, name="two")(flat)
    twice = dense(3, name="twice")
    both = dense(2, name="both")
    frozen_batch = bn("frozen", trainable=False)
    return {
        # conv → relu → BN is not conv → BN → relu.
        "activated": (row(image, conv(3, 3, activation="relu"), bn("activated")), "activation"),
        "relu": (row(image, conv(3, 3), layers.ReLU(), bn("relu")), "operation Relu stands in"),
        # The normalization is of each place of the picture, not of each channel.
        "flattened": (
            row(image, conv(3, 3), layers.Flatten(), bn("flattened"), layers.ReLU()), "Reshape"),
        "reshaped": (row(flat, dense(6), layers.Reshape((3, 2)), bn("reshaped")), "Reshape"),
        "forked": (layers.add([row(fork, bn("forked")), fork]), "also feeds the operation Add"),
        "outward": ([row(outward, bn("outward")), outward], "also feeds the model's output"),
        "one_of_two": ([row(two, bn("one_of_two")), row(two, bn("other_of_two"))], "also feeds"),
        "other_of_two": (two * 1.0, "also feeds"),
        # One kernel cannot have both scales (pytorch #124808).
        "of_call_1": (row(flat, twice, bn("of_call_1")), "also feeds of_call_2"),
        "of_call_2": (row(flat * 2.0, twice, bn("of_call_2")), "also feeds of_call_1"),
        "before_call_1": (row(flat, bn("before_call_1"), both), "behind it takes something else"),
        "before_call_2": (row(flat * 2.0, bn("before_call_2"), both), "takes something else, too"),
        "first": (row(flat, bn("first"), layers.ReLU()), "input stands in.*Relu takes its output"),
        # At the border, padding is 0 behind the normalization and would be shifted in front of it.
        "same": (row(image, bn("same"), conv(3, 3, padding="same")), "pads with zeros"),
        "causal": (row(line, bn("causal"), layers.Conv1D(3, 2, padding="causal")), "pads with"),
        "transposed": (row(image, bn("transposed"), layers.Conv2DTranspose(3, 2)), "pads with"),
        "strided": (
            row(image, bn("strided"), layers.Conv2DTranspose(3, 1, strides=2)), "pads with"),
        "other_axis": (row(line, dense(3), bn("other_axis", axis=1)), "axis 1 is not the channel"),
        "axis_in_front": (
            row(image, bn("axis_in_front", axis=1), conv(3, 3)), "axis 1 is not the channel axis"),
        "clipped": (row(flat, dense(3), Clipped(name="clipped")), "Clipped overrides call"),
        "conditional": (
            row(flat, dense(3), bn_keras.ConditionalBatchNorm(name="conditional")),
            "ConditionalBatchNorm overrides .*call"),
        "of_ones_own": (row(flat, OwnDense(3), bn("of_ones_own")), "OwnDense overrides call"),
        "cast": (
            row(flat, dense(3, dtype="mixed_float16"), bn("cast", dtype="float32")), "Cast stands"),
        # Of these, the certificate says that they are folded.
        "frozen": (frozen_batch(dense(3)(flat), training=True), None),
        "zero_shift": (
            row(image, bn("zero_shift", center=False), conv(3, 3, padding="same")), None),
        "behind_dropout": (
            row(flat, dense(3), layers.Dropout(0.5), bn("behind_dropout")), None),
        "of_harmless": (row(flat, Renamed(), bn("of_harmless")), None),
        "zero": (row(flat, dense(3), bn("zero"), layers.ReLU()), None),
        "in_a_row": (row(flat, dense(3), bn("in_a_row"), bn("row_2"), layers.ReLU()), None),
        "row_in_front": (row(flat, bn("row_in_front"), bn("row_4"), dense(3)), None),
        "between": (row(flat, dense(3), bn("between"), dense(2), layers.ReLU()), None),
        "time": (
            row(line, layers.TimeDistributed(dense(3)), layers.TimeDistributed(bn("time"))), None),
        "time_ours": (
            row(line, layers.TimeDistributed(bn_keras.BatchNorm(name="time_ours")),
                layers.TimeDistributed(dense(3))), None),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*called by a TimeDistributed")
def test_what_cannot_be_folded_is_left_with_the_reason(float64):
    inputs = {name: keras.Input(SHAPES[name], name=name) for name in ("flat", "line", "image")}
    cases = left_cases(**inputs)
    model = stirred(keras.Model(inputs, {name: outputs for name, (outputs, _) in cases.items()}))
    norm = {layer.name: layer for layer in model._flatten_layers() if isinstance(layer, BN)}
    norm["zero_shift"].moving_mean.assign([0, 0, 0, 0])
    norm["zero"].gamma.assign([0, 1, 0])
    folded, certificate = quiet(model, tolerance=1e-10)
    rows = {row.path.split("/")[-1]: row for row in certificate.rows}
    assert set(rows) == set(norm)
    for name, (_, reason) in cases.items():
        assert rows[name].fate == ("left" if reason else "folded"), rows[name]
        assert re.search(reason or "", rows[name].note), rows[name]
    stay = {layer.name for layer in folded._flatten_layers() if isinstance(layer, BN)}
    assert stay == {name for name in norm if rows[name].fate == "left"}


class Coded(keras.Model):
    """Calls its layers in another order than it made them, and one normalization by keywords."""

    def __init__(self):
        super().__init__()
        self.norms = [BN(name="for_second"), bn_keras.BatchNorm(name="for_first")]
        self.second, self.first = layers.Dense(3, name="second"), layers.Dense(3, name="first")
        self.inner = keras.Sequential([layers.Dense(3, use_bias=False), BN(name="inside")])

    def call(self, x, training=None):
        x = self.norms[1](self.first(x), training=training, mask=None, update_statistics=False)
        x = self.norms[0](self.second(keras.ops.tanh(x)), training=training)
        return self.inner(keras.ops.tanh(x), training=training)


class Odd(keras.Model):
    """A dense layer and a normalization behind it, and something that makes folding wrong."""

    def __init__(self, what):
        super().__init__()
        self.dense, self.norm, self.what = layers.Dense(3, name="dense"), BN(name="norm"), what
        self.other = layers.Dense(3, name="other")

    def build(self, shape):
        for layer in (self.dense, self.norm, self.other):
            layer.build((None, 3))
        if self.what == "lent":
            self.other._untrack_variable(self.other._kernel)
            self.other.__dict__["_kernel"] = self.dense._kernel

    def call(self, x):
        y = self.norm(self.dense(x), training=self.what == "training")
        if self.what == "tied":
            return y + keras.ops.matmul(x, keras.ops.transpose(self.dense.kernel))
        if self.what == "lent":
            return y + self.other(x)
        if self.what == "branch":
            positive = keras.ops.sum(x) > 0
            return y + tf.cond(positive, lambda: self.dense(x), lambda: 2 * self.dense(x))
        return y if self.what == "training" or float(keras.ops.sum(x)) > 0 else -y


@keras.saving.register_keras_serializable(package="test_fold")
class Cell(zoo.Cell):
    """A recurrent cell in which a normalization stands right behind a dense layer."""

    def call(self, x, states, training=None):
        h = keras.ops.tanh(self.norm(self.dense(x), training=training) + states[0])
        return h, [h]


def called(model, x):
    model(x)
    return stirred(model)


@pytest.mark.slow
def test_in_code_of_the_models_own_the_calls_count_and_not_the_order_of_attributes(float64):
    x = random((3,))
    model = called(Coded(), x)
    folded, certificate = quiet(model, inputs=x)
    into = {row.path.split("/")[-1]: row.note.split(" ")[1] for row in certificate.rows}
    assert (into["for_first"], into["for_second"]) == ("first", "second")
    assert into["inside"].startswith("sequential")
    assert certificate.relative < 1e-14
    np.testing.assert_allclose(folded.predict(x, verbose=0), model(x), rtol=1e-12)
    assert all("not in the model's config" in row.note for row in certificate.rows)
    assert [type(layer).__name__ for layer in folded.inner.layers] == ["Dense"]


@pytest.mark.parametrize("what, reason", [
    ("training", "called with training=True"), ("tied", "also used outside of it"),
    ("lent", "also used outside of it"), ("branch", "also feeds"),
])
def test_code_that_makes_folding_wrong_is_seen(what, reason):
    model = called(Odd(what), random((3,)))
    with pytest.warns(UserWarning, match=f"nothing in .* could be folded: norm .*{reason}"):
        folded, certificate = fold(model)
    assert fates(certificate) == {"norm": "left"} and certificate.difference == 0


def test_a_model_that_cannot_be_traced_is_refused():
    model = called(Odd("data"), random((3,)))
    with pytest.raises(ValueError, match="fold: 'odd.*cannot be traced.*expected a model that"):
        fold(model)


def nets_of_several_parts():
    """Models in which layers are shared, nested or hidden; how many normalizations are folded."""
    x = keras.Input((3,))

    def stack(*parts, shape=(3,), **settings):
        return keras.Sequential([keras.Input(shape), *parts], **settings)

    twice, norm = layers.Dense(3, name="twice"), BN(name="norm")
    yield "one_pair_called_twice", keras.Model(x, norm(twice(norm(twice(x))))), 1, 0
    one, two, norm = layers.Dense(4), layers.Dense(4, use_bias=False), BN(name="norm")
    yield "one_norm_behind_two", keras.Model(x, [norm(one(x)), norm(two(2 * x))]), 1, 0
    block = stack(layers.Dense(3), BN(), layers.ReLU())
    yield "one_block_called_twice", keras.Model(x, block(block(x))), 1, 0
    inner = keras.Model(x, layers.Dense(2)(layers.ReLU()(BN()(x))))
    yield "across_a_border", stack(layers.Dense(3), inner, BN()), 2, 0
    yield "nothing_but_a_norm", stack(layers.Dense(3), stack(BN(), name="alone")), 1, 0
    mask = keras.Input((3,), dtype="bool")
    nothing_else = keras.Model([x, mask], BN()(x, training=False, mask=mask[:, 0]))
    yield "a_graph_of_nothing_else", keras.Model(
        [x, mask], layers.ReLU()(nothing_else([layers.Dense(3)(x), mask]))), 1, 0
    yield "a_cell", stack(layers.RNN(Cell()), shape=(4, 3)), 1, 0
    yield "time_of_a_stack", stack(
        layers.TimeDistributed(stack(layers.Dense(3), BN())), shape=(4, 3)), 1, 0
    dense = layers.Dense(3, name="hidden")
    dense.build((None, 3))
    yield "hidden_use", keras.Model(
        x, [BN()(dense(x)), layers.Lambda(lambda x: dense(x), output_shape=(3,))(x)]), 0, 1
    given = keras.Input((4, 3))
    masked = layers.Masking(0.0)(given)
    y = BN(name="masked")(layers.Dense(3)(masked), mask=keras.ops.any(given != 0, -1))
    yield "a_mask", keras.Model(given, layers.LSTM(2)(y)), 1, 0
    only = keras.Model(x, {"features": layers.Dense(3)(x), "other": BN()(2 * x)})
    yield "other_outputs", only, 0, 1
    whole = stack(layers.Dense(3), BN(name="norm"), layers.ReLU())
    yield "a_part_of_another", keras.Model(whole.inputs[0], whole.get_layer("norm").output), 1, 0
    yield "residual", keras.Model(x, layers.add([x, BN()(layers.Dense(3)(x))])), 1, 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fold. nothing", "ignore:.*called by an RNN cell")
def test_shared_nested_and_hidden_layers_are_folded_where_it_is_right(float64, tmp_path):
    number = 0
    for name, model, folds, left in nets_of_several_parts():
        number += 1
        keras.utils.set_random_seed(0)
        folded, certificate = fold(stirred(model))
        counts = certificate.count("folded"), certificate.count("left")
        assert counts == (folds, left), f"{name}\n{certificate}"
        assert certificate.relative < 1e-13, name
        in_a_file = "not in the model's config" not in str(certificate)
        assert in_a_file is (name not in ("a_cell", "hidden_use", "other_outputs")) or left, name
        if not in_a_file or left:
            continue
        assert not any(isinstance(layer, BN) for layer in folded._flatten_layers()), name
        folded.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = random_inputs(model)
        for one, other in zip(*(keras.tree.flatten(m(x)) for m in (loaded, model)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12, err_msg=name)
        keras.models.clone_model(folded)
    assert number == 13


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [
    ("float64", 1e-10), ("float32", 1e-5), ("mixed_float16", 1e-2), ("mixed_bfloat16", 5e-2),
    ("float16", 1e-2),
])
def test_every_precision_and_way_of_calling_gives_what_the_model_gives(dtype, tolerance):
    made = [
        layers.Conv2D(4, 3, dtype=dtype), BN(dtype=dtype), layers.ReLU(dtype=dtype),
        bn_keras.BatchNorm(dtype=dtype), layers.DepthwiseConv2D(2, dtype=dtype),
    ]
    model = stirred(keras.Sequential([keras.Input((6, 6, 2), dtype=dtype[-7:]), *made]))
    folded, certificate = quiet(model)
    assert set(fates(certificate).values()) == {"folded"} and len(certificate.rows) == 2
    x = random((6, 6, 2))
    expected = np.asarray(keras.ops.cast(model(x), "float64"))
    for call in (folded, tf.function(folded), tf.function(folded, jit_compile=True)):
        actual = np.asarray(keras.ops.cast(call(tf.constant(x)), "float64"))
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
    stored = "float32" if dtype.startswith("mixed") else dtype
    stored = "float32" if dtype.startswith("mixed") else dtype
    assert [v.dtype for v in folded.variables] == [stored] * 4


def small(*before, **settings):
    """A dense layer with a normalization, compiled."""
    dense = layers.Dense(3, name="dense", **settings)
    model = keras.Sequential([keras.Input((4,)), *before, dense, BN(name="norm")])
    return stirred(model)


def test_weights_that_change_after_folding_count_in_full():
    """Nothing is half applied (pytorch #108863): old and new model share nothing."""
    model, x = small(), random((4,))
    folded, _ = quiet(model)
    expected = np.asarray(folded(x))
    model.set_weights([np.full(w.shape, 7.0) for w in model.get_weights()])
    np.testing.assert_array_equal(folded(x), expected)
    kernel, bias = folded.layers[0].kernel, folded.layers[0].bias
    kernel.assign(2 * kernel)
    np.testing.assert_allclose(folded(x), 2 * (expected - bias) + bias, rtol=1e-4, atol=1e-5)
    kept = [v.path for v in model.layers[0].variables]
    assert [v.path for v in folded.variables] == kept and kept[1].endswith("dense/bias")


def test_penalties_of_weights_that_are_gone_go_too_and_what_was_frozen_stays_so():
    settings = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm", "use_bias": False}
    model = small(**settings)
    folded, certificate = quiet(model)
    assert "without the kernel_constraint, kernel_regularizer of" in certificate.rows[0].note
    assert len(model.losses) == 1 and not folded.losses and len(folded.trainable_variables) == 2
    model.get_layer("dense").trainable = False
    folded, _ = quiet(model)
    assert not folded.trainable_variables and len(folded.variables) == 2
    assert folded.layers[0].get_config()["kernel_constraint"] is None
    assert folded.layers[0].get_config()["use_bias"] and not folded.layers[0].trainable


@pytest.mark.slow
def test_low_rank_and_quantized_kernels_are_left():
    for change, reason in (("enable_lora", "has LoRA weights"), ("quantize", "BiasAdd stands")):
        model = small()
        getattr(model.layers[0], change)(2 if change == "enable_lora" else "int8")
        with pytest.warns(UserWarning, match=f"norm .*{reason}"):
            _, certificate = fold(model)
        assert fates(certificate) == {"norm": "left"}


@pytest.mark.parametrize("name, value, reason", [
    ("moving_mean", np.nan, "not finite"), ("moving_variance", -1, "variance is negative"),
    ("gamma", 1e39, "not finite"),
])
@pytest.mark.filterwarnings("ignore:fold. nothing")
def test_statistics_that_are_no_numbers_are_named(name, value, reason):
    """The outputs are no numbers either way: the new model's equal the given one's."""
    model = small()
    getattr(model.layers[1], name).assign([value, 1, 1])
    row, = fold(model)[1].rows
    assert row.fate == "left" and reason in row.note
    half = stirred(keras.Sequential([
        keras.Input((4,)), layers.Dense(3, dtype="float16"), BN(name="half", dtype="float16")
    ]))
    half.layers[1].gamma.assign([6e4, 1, 1])
    half.layers[1].moving_variance.assign([0, 1, 1])
    row, = fold(half)[1].rows
    assert row.fate == "left" and "float16 cannot hold" in row.note


def test_what_is_given_is_checked():
    with pytest.raises(TypeError, match="fold: received a Dense"):
        fold(layers.Dense(2))
    with pytest.raises(ValueError, match="fold: .* is not built"):
        fold(keras.Sequential([layers.Dense(2)]))
    with pytest.warns(UserWarning, match="no batch normalization"):
        fold(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    with pytest.raises(OutputsDiffer, match="may differ by 1e-30"):
        fold(small(), tolerance=1e-30)
    with pytest.raises(OutputsDiffer, match="may differ by 1e-30"):
        fold(small(), inputs=random((4,)), tolerance=1e-30)


def test_a_file_that_cannot_hold_a_fold_is_not_loaded_as_if_it_did(tmp_path):
    model = stirred(keras.Sequential([keras.Input((4, 3)), layers.RNN(Cell())]))
    folded, certificate = fold(model)
    assert "not in the model's config: fold again after loading" in certificate.rows[0].note
    folded.save(tmp_path / "model.keras")
    with pytest.raises(Exception):
        keras.saving.load_model(tmp_path / "model.keras")


@keras.saving.register_keras_serializable(package="test_fold")
class Block(layers.Layer):
    """A dense layer and a normalization in no config, named as those in front of the block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(3, name="dense"), BN(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


@pytest.mark.slow
def test_a_namesake_in_the_config_does_not_hide_what_a_file_loses():
    model = stirred(keras.Sequential([
        keras.Input((3,)), layers.Dense(3, name="dense"), BN(name="norm"), Block(),
    ]))
    _, folded = fold(model)
    assert all("not in the model's config: fold again" in row.note for row in folded.rows)
    _, frozen = bn_keras.freeze(model, "both")
    assert all("a file does not hold that: freeze again" in row.note for row in frozen.rows)
    _, exchanged = bn_keras.exchange(model, "layer")
    assert all("not in the model's config: do it again" in row.note for row in exchanged.rows)
    assert len(folded.rows) == len(frozen.rows) == len(exchanged.rows) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fold. nothing")
def test_every_kind_of_model_has_a_row_for_each_normalization_and_predicts_as_before():
    for name, make in zip(NAMES, ZOO):
        keras.utils.set_random_seed(0)
        model, x = make(), inputs_of(name)
        model(x)
        stirred(model)
        folded, certificate = fold(model, inputs=x)
        norms = [layer for layer in model._flatten_layers() if isinstance(layer, BN)]
        hidden = name == "in_a_lambda"  # Keras does not know of that layer
        assert len(certificate.rows) == len(norms) + hidden, name
        stay = [layer for layer in folded._flatten_layers() if isinstance(layer, BN)]
        assert len(stay) + certificate.count("folded") == len(norms), name
        assert certificate.relative <= (0.05 if name == "mixed_precision" else 1e-5), name


def lite(model, x, folder):
    """What an exported model predicts, and a TFLite model made of that."""
    model.export(folder, verbose=False)
    loaded = tf.saved_model.load(str(folder))
    return loaded.serve(x), zoo.tflite_predictions(folder, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("name, folds", [("MobileNetV2", 52), ("coded", 3)])
def test_a_folded_net_is_saved_loaded_and_exported(name, folds, tmp_path):
    if name == "coded":
        x = random((3,)).astype("float32")
        model = called(Coded(), x)
    else:
        x = random((32, 32, 3)).astype("float32")
        model = stirred(keras.applications.MobileNetV2(
            weights=None, input_shape=(32, 32, 3), classes=5, alpha=0.35
        ))
    folded, certificate = quiet(model, inputs=x)
    assert (certificate.count("folded"), certificate.count("left")) == (folds, 0)
    expected = np.asarray(model(x))
    for actual in lite(folded, x, tmp_path / "saved"):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    if name != "coded":
        folded.save(tmp_path / "net.keras")
        loaded = keras.saving.load_model(tmp_path / "net.keras")
        np.testing.assert_allclose(loaded(x), expected, rtol=1e-4, atol=1e-5)


def test_a_normalization_between_a_concatenation_and_an_activation_is_left():
    """As in DenseNet, where BN and relu stand in front of the convolutions."""
    inputs = keras.Input((4, 4, 2))
    x = BN(name="stem")(layers.Conv2D(3, 1)(inputs))
    for block in "ab":
        y = layers.ReLU()(BN(name=f"{block}_in_front")(x))
        y = layers.ReLU()(BN(name=f"{block}_between")(layers.Conv2D(4, 1)(y)))
        x = layers.Concatenate()([x, layers.Conv2D(2, 3, padding="same")(y)])
    _, certificate = quiet(stirred(keras.Model(inputs, layers.ReLU()(BN(name="last")(x)))))
    assert fates(certificate) == {
        "stem": "folded", "a_in_front": "left", "a_between": "folded", "b_in_front": "left",
        "b_between": "folded", "last": "left",
    }
    notes = {row.path: row.note for row in certificate.rows if row.fate == "left"}
    assert all("ConcatV2 stands in front" in notes[path] for path in ("b_in_front", "last"))


def test_a_frozen_normalization_is_folded_whatever_mode_its_code_asks_for():
    model = called(Odd("training"), random((3,)))
    model.norm.trainable = False
    _, certificate = quiet(model)
    assert fates(certificate) == {"norm": "folded"}


@pytest.mark.parametrize("dtype, error", [("float32", 1e-4), ("float64", 1e-8)])
def test_a_fold_with_a_small_error_is_refused(dtype, error, monkeypatch):
    affine = fold_module._affine
    monkeypatch.setattr(
        fold_module, "_affine", lambda norm: tuple(x * (1 + error) for x in affine(norm))
    )
    norm = BN(name="norm", dtype=dtype)
    model = stirred(keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=dtype), norm]))
    with pytest.raises(OutputsDiffer, match="may differ by 1e-(05|10) of the largest"):
        fold(model)


def test_what_nobody_could_look_into_is_told():
    hidden = BN(name="hidden")
    hidden.build((None, 3))
    model = stirred(keras.Sequential([
        keras.Input((4,)), layers.Dense(3), BN(name="seen"), layers.Lambda(lambda x: hidden(x))
    ]))
    with pytest.warns(UserWarning, match="nobody looked into hidden .*not tracked by Keras"):
        _, certificate = fold(model)
    assert fates(certificate) == {"seen": "folded", "hidden": "left"}


def test_outputs_that_are_no_numbers_are_not_taken_for_equal_ones():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.BatchNormalization()])
    x = np.ones((4, 3), "float32")
    x[1, 0] = np.nan
    for surgery in (fold, bn_keras.freeze):
        told = surgery(model, inputs=x)[1].measured
        assert told.endswith("; 2 of 8 outputs are not finite in either")
    with pytest.raises(OutputsDiffer, match="not measured .*no output of either is finite"):
        fold(model, inputs=x * np.nan)
    assert bn_keras.freeze(model, inputs=x * np.nan)[1].difference is None
