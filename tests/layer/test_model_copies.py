"""Copies that evaluate in another way: of every kind of model, eager, in a graph and under XLA."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from make import MODES
from zoo import BN, NAMES, ZOO, as_array, inputs_of

from bn_keras import BatchNorm
from bn_keras.diagnostics import pitfalls
from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.normalizers.renorm import BatchRenorm
from bn_keras.surgery.copies import copy_model

KINDS = dict(zip(NAMES, ZOO))
KINDS["ours in a block"] = lambda: keras.Sequential([keras.Input((3,)), Residual(BatchNorm)])
COMPILED = ("ours in a block", "subclassed", "masked")  # these run under XLA, too: it takes seconds


class Residual(layers.Layer):
    """Asks a tensor which way to go, and hands its mode on."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = kind(), layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x, training=False):
        x = keras.ops.cond(keras.ops.sum(x) > 1e9, lambda: -x, lambda: x * 1)
        return x + self.norm(self.dense(x), training=training)


def made(name):
    """A model without dropout, shaken, and its inputs."""
    keras.utils.set_random_seed(0)
    model, x = KINDS[name](), inputs_of(name)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model, x


def flat(outputs):
    return [as_array(y) for y in keras.tree.flatten(outputs)]


def assert_close(ones, others, **tolerance):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})


# Keras calls a normalizer in `shared` with training=False: in a training pass it infers.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name != "shared"])
def test_batch_statistics_are_those_of_a_training_pass(name):
    model, x = made(name)
    state = [variable.numpy() for variable in model.variables]
    expected = flat(copy_model(model)(x, training=True))
    inferred = flat(model(x, training=False))
    copy = BatchStatisticsModel(model)
    for how, run in MODES.items():
        if how == "xla" and name not in COMPILED:
            continue
        call = run(lambda x: copy(x))
        for _ in range(2):  # the first call moved nothing that the second one sees
            assert_close(flat(call(x)), expected, **(
                {"atol": 0.05} if name == "mixed_precision" else {}
            ))
    assert max(np.abs(one - other).max() for one, other in zip(expected, inferred)) > 0.1
    for variable, value in zip(model.variables, state, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_correct_evaluation_is_plain_inference_and_every_copy_differs_as_its_bug_does(name):
    model, x = made(name)
    for variable in model.variables:
        if variable.name.startswith("moving"):
            variable.assign(variable + 0.5)
    state = [variable.numpy() for variable in model.variables]
    expected = flat(model(x, training=False))
    assert_close(flat(pitfalls.correct(model)(x)), expected)
    names = pitfalls.evaluations(model)
    if name == "in_a_lambda":  # Keras does not know the layer, and nobody is told of it
        assert names == ["correct"]
        return
    assert {"never_updated", "batch_statistics", "without_bn"} <= set(names)
    found = {bug: flat(pitfalls.evaluation(bug)(model)(x)) for bug in names}
    for bug in ("never_updated", "batch_statistics", "without_bn"):
        far = max(np.abs(one - other).max() for one, other in zip(found[bug], expected))
        assert far > 0.05, bug
    for variable in model.variables:
        if variable.name.startswith("moving"):
            variable.assign(tf.fill(variable.shape, 1.0 if "variance" in variable.name else 0.0))
    assert_close(found["never_updated"], flat(model(x, training=False)))
    for variable, value in zip(model.variables, state, strict=True):
        if not variable.name.startswith("moving"):
            np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("kind", [BatchNorm, BN, BatchRenorm], ids=["ours", "keras", "renorm"])
def test_refresh_reaches_nested_weights_in_a_traced_graph_too(kind, how):
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3), kind()])
    model = keras.Sequential([keras.Input((3,)), inner, Residual(kind)])
    x = tf.constant(inputs_of(""))
    copies = {"batch": BatchStatisticsModel(model), "plain": pitfalls.correct(model),
              "fresh": pitfalls.never_updated(model)}
    calls = {name: MODES[how](lambda x, copy=copy: copy(x)) for name, copy in copies.items()}
    for call in calls.values():
        call(x)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(variable * 1.5 + 0.25)
    for copy in copies.values():
        copy.refresh()
    assert_close(flat(calls["plain"](x)), flat(model(x, training=False)))
    assert_close(flat(calls["batch"](x)), flat(copy_model(model)(x, training=True)))
    for layer in model._flatten_layers():
        if hasattr(layer, "moving_mean"):
            layer.moving_mean.assign(tf.zeros(3))
            layer.moving_variance.assign(tf.ones(3))
    assert_close(flat(calls["fresh"](x)), flat(model(x, training=False)))


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("kind", [BatchNorm, BN, BatchRenorm], ids=["ours", "keras", "renorm"])
def test_a_call_moves_no_statistics_so_that_the_next_one_gives_the_same(kind, how):
    """Batch renormalization would otherwise hand a batch's statistics to the next one."""
    settings = {"rmax": None, "dmax": None} if kind is BatchRenorm else {}
    model = keras.Sequential([keras.Input((3,)), kind(momentum=0.1, **settings)])
    if kind is BatchRenorm:
        model.layers[0].renorm_mean.assign([1.0, 2.0, 3.0])
    copy, x = BatchStatisticsModel(model), tf.constant(inputs_of(""))
    call = MODES[how](lambda x: copy(x))
    ones = flat(call(x))
    call(3 * x + 1)
    assert_close(flat(call(x)), ones, atol=0, rtol=0)
    assert_close([v.numpy() for v in copy._copy.variables], [v.numpy() for v in model.variables])


def test_the_gap_of_a_nested_model_is_its_true_one():
    """Population statistics 3 deviations off behind a nested and a shared normalizer."""
    inputs, other = keras.Input((3,)), keras.Input((3,))
    norm = BatchNorm(name="norm", epsilon=1e-9)
    inner = keras.Model(inputs, norm(inputs))
    model = keras.Model([inputs, other], layers.add([inner(inputs), inner(other)]))
    x, y = inputs_of(""), 2 * inputs_of("") + 5
    gap = flat(BatchStatisticsModel(model)([x, y]))[0] - flat(model([x, y], training=False))[0]
    expected = (x - x.mean(0)) / x.std(0) + (y - y.mean(0)) / y.std(0) - x - y
    np.testing.assert_allclose(gap, expected, atol=1e-3)


class Noisy(keras.Model):
    """A dropout layer in a list of a nested model, beside a normalizer."""

    def __init__(self, layer):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(8), BatchNorm(), layer])

    def call(self, x):
        return self.inner(x)


DROPPING = {
    "Dropout": lambda: layers.Dropout(0.5),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "LSTM": lambda: layers.LSTM(4, dropout=0.5),
    "GRU": lambda: layers.GRU(4, recurrent_dropout=0.5),
    "cell": lambda: layers.RNN(layers.SimpleRNNCell(4, dropout=0.5)),
    "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(4, dropout=0.5)),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dropout(0.5)),
    "attention": lambda: Attention(),
}


class Attention(layers.Layer):
    """Attention of a sequence to itself."""

    def __init__(self):
        super().__init__()
        self.inner = layers.MultiHeadAttention(2, 3, dropout=0.5)

    def build(self, shape):
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


@pytest.mark.slow
@pytest.mark.parametrize("make", DROPPING.values(), ids=DROPPING)
def test_dropout_of_every_kind_drops_in_one_copy_and_in_no_other(make):
    model, x = Noisy(make()), np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    expected = flat(model(x, training=False))
    assert pitfalls.evaluations(model) == [
        "correct", "never_updated", "batch_statistics", "without_bn", "dropout_active"
    ]
    assert_close(flat(pitfalls.correct(model)(x)), expected)
    calm = BatchStatisticsModel(model)
    assert_close(flat(calm(x)), flat(calm(x)), atol=0, rtol=0)
    noisy = pitfalls.dropout_active(model)
    one, other = (flat(noisy(x))[0] for _ in range(2))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - expected[0]).max() > 1e-3


def test_layers_without_a_rate_do_not_drop():
    model = Noisy(layers.LSTM(4))
    model(np.ones((2, 5, 3), "float32"))
    assert "dropout_active" not in pitfalls.evaluations(model)


def test_a_stack_of_runs_is_evaluated_run_by_run():
    """Inputs (batch, runs, ...) whose channels are the runs' features, one behind the other."""
    inputs = keras.Input((2, 3))
    x = layers.Flatten()(inputs)
    model = keras.Model(inputs, layers.Reshape((2, 3))(BatchNorm(epsilon=1e-9)(x)))
    x = np.random.default_rng(0).normal(3, 2, (7, 2, 3)).astype("float32")
    found = flat(BatchStatisticsModel(model)(x))[0]
    np.testing.assert_allclose(found, (x - x.mean(0)) / x.std(0), atol=1e-4)


def test_what_cannot_be_evaluated_otherwise_is_named():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="odd")])
    model.layers[0].fast = tf.function(model.layers[0].call)
    with pytest.raises(TypeError, match="'odd' .Dense.*'fast'.*tf.function"):
        BatchStatisticsModel(model)
    with pytest.raises(ValueError, match="BatchStatisticsModel: .* is not built"):
        BatchStatisticsModel(keras.Sequential([BatchNorm()]))
    with pytest.raises(TypeError, match="BatchStatisticsModel: received a BatchNorm"):
        BatchStatisticsModel(BatchNorm())


@pytest.mark.slow
def test_a_stored_graph_of_another_program_is_refused(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), BatchNorm()])
    inner.export(tmp_path / "stored", verbose=False)
    stored = layers.TFSMLayer(tmp_path / "stored", call_endpoint="serve", name="stored")
    model = keras.Sequential([keras.Input((3,)), stored])
    with pytest.raises(TypeError, match="'stored' of '.*' is a TFSMLayer, whose insides"):
        BatchStatisticsModel(model)


def test_one_layer_can_be_called_otherwise_for_a_while():
    from bn_keras.surgery.calls import redirected

    layer = layers.Dense(2)
    x = inputs_of("")
    expected = flat(layer(x))
    with redirected(layer, lambda layer, call, *args, **kwargs: 2 * call(*args, **kwargs)):
        with redirected(layer, lambda layer, call, *args, **kwargs: 1 + call(*args, **kwargs)):
            assert_close(flat(layer(x)), [1 + 2 * expected[0]])
        assert_close(flat(layer(x)), [2 * expected[0]])
    assert_close(flat(layer(x)), expected)
    assert "call" not in vars(layer)
