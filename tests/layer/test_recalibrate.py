"""Population statistics that are recomputed are those of all examples, at fixed weights."""

import collections
import contextlib
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import NAMES, ZOO, Cell, as_array, inputs_of

from bn_keras import BatchNorm
from bn_keras.normalizers.conditional import ConditionalBatchNorm
from bn_keras.normalizers.frozen import FrozenBatchNorm
from bn_keras.normalizers.ghost import GhostBatchNorm
from bn_keras.normalizers.renorm import BatchRenorm
from bn_keras.surgery.dependencies import order_of_calls
from bn_keras.surgery.recalibrate import (
    recalibrate,
    recalibrate_in_one_pass,
    recalibrate_in_place,
    recalibrated,
)
from bn_keras.surgery.statistics import batch_normalizers, restore, snapshot

KINDS = [BatchNorm, keras.layers.BatchNormalization]


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(np.float32)


def net(kind, inner=None):
    """Dense, normalizer, tanh, twice; with weights and statistics that are not the initial ones."""
    inputs = keras.Input((3,))
    x = kind()(keras.layers.Dense(4)(inputs))
    x = keras.ops.tanh(x) if inner is None else inner(x)
    model = keras.Model(inputs, kind()(keras.layers.Dense(2)(x)))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_that_numpy_gives_layer_by_layer(kind, batch_size):
    x = data(23, 3)
    model = net(kind)
    copy = recalibrated(model, x, batch_size)
    dense = [w.astype(np.float64) for w in model.get_weights()]
    (w1, b1, gamma, beta), (w2, b2) = dense[:4], dense[6:8]
    z = x @ w1 + b1
    first, second = batch_normalizers(copy)
    np.testing.assert_allclose(first.moving_mean.numpy(), z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(first.moving_variance.numpy(), z.var(0), rtol=1e-5)
    z = np.tanh((z - z.mean(0)) / np.sqrt(z.var(0) + first.epsilon) * gamma + beta) @ w2 + b2
    np.testing.assert_allclose(second.moving_mean.numpy(), z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(second.moving_variance.numpy(), z.var(0), rtol=1e-5)


def test_the_given_model_and_all_trainable_weights_stay_as_they_were():
    model = net(BatchNorm)
    before = [weight.copy() for weight in model.get_weights()]
    copy = recalibrated(model, data(9, 3))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(model.trainable_weights, copy.trainable_weights, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    x = data(9, 3)  # the copy's layers are watched no more, and work as ever
    np.testing.assert_allclose(copy(x, training=True), model(x, training=True), rtol=1e-4)


def test_images_have_one_statistic_a_channel_and_nested_models_are_reached():
    inner = keras.Sequential([keras.layers.Conv2D(2, 3), BatchNorm()])
    model = keras.Sequential([keras.Input((6, 6, 1)), inner, keras.layers.Flatten()])
    x = data(5, 6, 6, 1)
    before = inner.layers[0](x).numpy()
    layer, = batch_normalizers(recalibrated(model, x, batch_size=2))
    np.testing.assert_allclose(layer.moving_mean.numpy(), before.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance.numpy(), before.var((0, 1, 2)), rtol=1e-4)


def test_masked_positions_do_not_count():
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, BatchNorm()(keras.layers.Masking(0.0)(inputs)))
    x = data(6, 4, 2)
    x[:, 2:] = 0
    layer, = batch_normalizers(recalibrated(model, x, batch_size=4))
    np.testing.assert_allclose(layer.moving_mean.numpy(), x[:, :2].mean((0, 1)), rtol=1e-5)


def test_a_model_without_normalization_comes_back_as_it_is():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x = data(4, 3)
    np.testing.assert_array_equal(recalibrated(model, x)(x), model(x))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="received 0 examples"):
        recalibrated(net(BatchNorm), data(0, 3))


# ---------------------------------------------------------------- any kind of model


def shaken(model):
    """Weights and statistics that are not the initial ones."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@contextlib.contextmanager
def recorded(model):
    """Yields a dict: layer's number → what goes into its calls, (values, channels) arrays."""
    found = collections.defaultdict(list)
    layers = batch_normalizers(model)

    def record(number, call, inputs, *args, mask=None, **kwargs):
        rows = as_array(inputs).reshape(-1, inputs.shape[-1])
        found[number].append(rows if mask is None else rows[as_array(mask).ravel() > 0])
        return call(inputs, *args, **kwargs)

    for number, layer in enumerate(layers):
        layer.call = functools.partial(record, number, layer.call)
    yield found
    for layer in layers:
        del layer.call


KINDS_OF_MODEL = dict(zip(NAMES, ZOO))
# Their normalizers stand behind themselves, which has tests of its own; Keras does not know of the
# layer in a lambda.
OWN_TESTS = {"shared", "wrapped", "in_a_lambda"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN_TESTS])
def test_what_a_layer_holds_is_what_goes_into_it_in_any_kind_of_model(name):
    model, x = shaken(KINDS_OF_MODEL[name]()), inputs_of(name)
    kept = [layer for layer in batch_normalizers(model) if not layer.trainable]
    copy = recalibrated(model, x, batch_size=4)
    assert type(copy) is type(model)
    with recorded(copy) as found:
        copy(x, training=False)
    layers = list(zip(batch_normalizers(copy), batch_normalizers(model), strict=True))
    assert layers and len(kept) == (2 if name == "frozen" else 0)
    for number, (layer, original) in enumerate(layers):
        rows = np.concatenate(found[number]).astype(np.float64) if found[number] else None
        if original in kept or rows is None:
            np.testing.assert_array_equal(layer.moving_mean, original.moving_mean)
            continue
        coarse = {"rtol": 1e-2} if name == "mixed_precision" else {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(layer.moving_mean, rows.mean(0), **coarse)
        np.testing.assert_allclose(layer.moving_variance, rows.var(0), **coarse)


SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in ("wrapped", "frozen")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [SLOW.get(n, n) for n in NAMES if n != "in_a_lambda"])
def test_neither_batches_nor_old_statistics_nor_a_second_time_make_a_difference(name):
    model, x = shaken(KINDS_OF_MODEL[name]()), inputs_of(name)
    exact = snapshot(recalibrated(model, x))
    for layer in batch_normalizers(model):
        if layer.trainable:
            layer.moving_mean.assign(layer.moving_mean * -3.0)
            layer.moving_variance.assign(layer.moving_variance * 9.0)
    again = snapshot(recalibrated(model, x, batch_size=2))
    for path, value in exact.items():
        np.testing.assert_allclose(again[path], value, rtol=1e-4, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_called_on_two_inputs_gets_the_statistics_of_both(kind):
    inputs, others = keras.Input((3,)), keras.Input((3,))
    norm = kind()
    model = shaken(keras.Model([inputs, others], [norm(inputs), norm(others)]))
    x, y = data(10, 3), data(10, 3, seed=1) + 7
    batches = Counted([[x[:4], y[:4]], [x[4:], y[4:]]])
    layer, = batch_normalizers(recalibrated(model, batches))
    both = np.concatenate([x, y]).astype(np.float64)
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, both.var(0), rtol=1e-5)
    assert batches.passes == 1


def test_calls_behind_one_another_are_taken_in_turn():
    """norm(dense(norm(x))): the second call sees the first one's outputs by its own statistics."""
    inputs = keras.Input((3,))
    norm, dense = BatchNorm(), keras.layers.Dense(3)
    model = shaken(keras.Model(inputs, norm(dense(norm(inputs)))))
    x = data(11, 3).astype(np.float64)
    gamma, beta, kernel, bias = (
        w.numpy().astype(np.float64) for w in (norm.gamma, norm.beta, dense.kernel, dense.bias)
    )
    first = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.epsilon) * gamma + beta
    both = np.concatenate([x, first @ kernel + bias])
    layer, = batch_normalizers(recalibrated(model, x.astype(np.float32), batch_size=4))
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, both.var(0), rtol=1e-4)


@pytest.mark.slow
def test_the_cell_of_a_recurrent_layer_gets_the_statistics_of_all_time_steps():
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.RNN(Cell())])
    shaken(model)
    cell = model.layers[0].cell
    cell.dense.kernel.assign(cell.dense.kernel * 0.2)
    x = data(9, 3, 2).astype(np.float64)
    kernel, bias, gamma, beta = (
        w.numpy().astype(np.float64)
        for w in (cell.dense.kernel, cell.dense.bias, cell.norm.gamma, cell.norm.beta)
    )
    seen, steps = [], []
    for step in range(3):  # each behind the statistics of the steps before
        state = np.zeros((9, 3))
        steps = [x[:, t] @ kernel + bias for t in range(step + 1)]
        for t in range(step + 1):
            inputs = steps[t] + state
            if t < step:
                rows = np.concatenate(seen)
                state = (inputs - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3) * gamma + beta
        seen += [inputs] * (2 if step == 0 else 1)  # Keras calls the cell once more for its shape
    rows = np.concatenate(seen)
    layer, = batch_normalizers(recalibrated(model, x.astype(np.float32), batch_size=4))
    np.testing.assert_allclose(layer.moving_mean, rows.mean(0), rtol=1e-3)
    np.testing.assert_allclose(layer.moving_variance, rows.var(0), rtol=1e-3)
    with pytest.raises(ValueError, match="stands behind itself, and was called more often"):
        open_steps = keras.Sequential([keras.Input((None, 2)), keras.layers.RNN(Cell())])
        recalibrated(open_steps, [data(4, 2, 2), data(4, 3, 2)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapper_over_time_steps_gets_the_statistics_of_all_of_them(kind):
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.TimeDistributed(kind())])
    x = data(7, 4, 3)
    layer, = batch_normalizers(recalibrated(shaken(model), x, batch_size=3))
    np.testing.assert_allclose(layer.moving_mean, x.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, x.var((0, 1)), rtol=1e-4)


# ---------------------------------------------------------------- passes


class Counted:
    """An iterable of batches that counts how often it is read to its end."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        yield from self.batches
        self.passes += 1


def branches(width, depth):
    """Two residual blocks of `width` branches of `depth` normalizers each, and one more layer."""
    inputs = x = keras.Input((3,))
    for _ in range(2):
        ends = []
        for _ in range(width):
            end = x
            for _ in range(depth):
                end = keras.layers.Dense(3, activation="tanh")(BatchNorm()(end))
            ends.append(end)
        x = keras.layers.add([x, *ends])
    return keras.Model(inputs, BatchNorm()(x))


@pytest.mark.slow
def test_there_are_as_many_passes_as_the_longest_chain_has_layers():
    model, x = shaken(branches(width=3, depth=2)), data(8, 3)
    batches = Counted([x[:5], x[5:]])
    copy = recalibrated(model, batches)
    assert len(batch_normalizers(model)) == 13 and batches.passes == 5
    with recorded(copy) as found:
        copy(x, training=False)
    for number, layer in enumerate(batch_normalizers(copy)):
        np.testing.assert_allclose(layer.moving_mean, found[number][0].mean(0), atol=1e-4)


def test_a_branch_of_another_length_waits_for_no_other():
    """A short branch is done while a long one goes on; what joins both comes behind both."""
    inputs = keras.Input((3,))
    long = BatchNorm(name="b")(BatchNorm(name="a")(inputs))
    short = BatchNorm(name="c")(inputs)
    model = keras.Model(inputs, BatchNorm(name="d")(keras.layers.add([long, short])))
    x = data(8, 3)
    layers = batch_normalizers(model)
    passes = order_of_calls(model, layers, x)
    assert [sorted(layer.name for layer, _ in one) for one in passes] == [["a", "c"], ["b"], ["d"]]


def test_a_condition_that_another_layer_makes_counts_as_its_input():
    """gamma of the second layer comes from behind a third one: the fourth is behind all."""
    inputs = keras.Input((3,))
    gamma = BatchNorm(name="third")(BatchNorm(name="first")(inputs))
    x = ConditionalBatchNorm(name="second")(inputs, gamma=gamma)
    model = keras.Model(inputs, BatchNorm(name="fourth")(x))
    passes = order_of_calls(model, batch_normalizers(model), data(8, 3))
    assert [layer.name for layer, _ in passes[-1]] == ["fourth"] and len(passes) == 3


class Eager(keras.Model):
    """Looks at numbers, which no graph has."""

    def __init__(self):
        super().__init__()
        self.norms = [BatchNorm(), BatchNorm()]

    def call(self, x):
        sign = float(keras.ops.convert_to_numpy(x).sum() > 0)
        return self.norms[1](self.norms[0](x)) * sign


def test_a_model_that_has_no_graph_is_taken_in_the_order_of_its_calls():
    model, x = Eager(), data(8, 3)
    model(x)
    copy = recalibrated(shaken(model), x)
    with recorded(copy) as found:
        copy(x)
    for number, layer in enumerate(batch_normalizers(copy)):
        np.testing.assert_allclose(layer.moving_mean, found[number][0].mean(0), atol=1e-4)


class Compiled(keras.Model):
    """Runs a part of itself in a graph of its own."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm(name="inside")

    @tf.function
    def call(self, x):
        return self.norm(x)


def test_a_layer_inside_a_graph_of_the_model_is_refused_by_name():
    model = Compiled()
    model(data(4, 3))
    for surgery in (recalibrate, recalibrate_in_one_pass):
        with pytest.raises(ValueError, match="'inside' is called inside a tf.function of the"):
            surgery(model, data(4, 3))


# ---------------------------------------------------------------- kinds of data


class Sequence(keras.utils.PyDataset):
    """Batches by their numbers."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return self.x[4 * number:4 * number + 4], np.zeros(4)


def batched(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(5)


FORMS = {
    "array": lambda x: x,
    "tensor": tf.constant,
    "dataset of x": batched,
    "dataset of (x, y)": lambda x: batched(x, x[:, 0]),
    "dataset of (x, y, w)": lambda x: batched(x, x[:, 0], x[:, 1]),
    "shuffled dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).shuffle(12).batch(5),
    "list of batches": lambda x: [x[:5], x[5:5], x[5:]],
    "list of (x, y)": lambda x: [(x[:5], x[:5, 0]), (x[5:], x[5:, 0])],
    "as torch's loaders": lambda x: [[x[:5], x[:5, 0]], [x[5:], x[5:, 0]]],
    "PyDataset": Sequence,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("surgery", [recalibrate, recalibrate_in_one_pass])
def test_examples_come_in_any_form(form, surgery):
    x, model = data(12, 3), net(BatchNorm)
    first, second = batch_normalizers(surgery(model, FORMS[form](x))[0])
    one, other = batch_normalizers(recalibrated(model, x))
    np.testing.assert_allclose(first.moving_variance, one.moving_variance, rtol=1e-4)
    if surgery is recalibrate:
        np.testing.assert_allclose(second.moving_variance, other.moving_variance, rtol=1e-4)


PAIRS = {
    "list of arrays": lambda x, y: [x, y],
    "tuple of arrays": lambda x, y: (x, y),
    "dict of arrays": lambda x, y: {"one": x, "other": y},
    "batches of lists": lambda x, y: [([x[:5], y[:5]], x[:5]), ([x[5:], y[5:]], x[5:])],
    "batches of dicts": lambda x, y: [
        {"one": x[:5], "other": y[:5]}, {"one": x[5:], "other": y[5:]},
    ],
    "dataset of pairs": lambda x, y: batched(x, y),
    "dataset of (pair, labels)": lambda x, y: tf.data.Dataset.from_tensor_slices(
        ((x, y), x)).batch(5),
    "dataset of (dict, labels)": lambda x, y: tf.data.Dataset.from_tensor_slices(
        ({"one": x, "other": y}, x)).batch(5),
}


class Two(keras.Model):
    """Takes a list or dict of two inputs; no graph of layers says so."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm()

    def call(self, inputs):
        one, other = inputs.values() if isinstance(inputs, dict) else inputs
        return self.norm(one + 2 * other)


@pytest.mark.parametrize("form", PAIRS)
@pytest.mark.parametrize("graph", [True, False], ids=["functional", "subclassed"])
def test_two_inputs_come_in_any_form(form, graph):
    x, y = data(12, 3), data(12, 3, seed=1)
    is_dict = "dict" in form
    if graph:
        one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
        outputs = BatchNorm()(one + 2 * other)
        model = keras.Model({"one": one, "other": other} if is_dict else [one, other], outputs)
    else:
        model = Two()
        model({"one": x, "other": y} if is_dict else [x, y])
    layer, = batch_normalizers(recalibrated(model, PAIRS[form](x, y), batch_size=5))
    np.testing.assert_allclose(layer.moving_mean, (x + 2 * y).mean(0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, (x + 2 * y).var(0), rtol=1e-4)


@pytest.mark.slow
def test_a_generator_does_for_one_pass_and_is_refused_for_more():
    x = data(8, 3)
    flat = keras.Sequential([keras.Input((3,)), BatchNorm()])
    layer, = batch_normalizers(recalibrated(flat, (x[i:i + 4] for i in range(0, 8, 4))))
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-4)
    with pytest.raises(ValueError, match="a generator, which can be read once; 2 normalizers"):
        recalibrated(net(BatchNorm), (x[i:i + 4] for i in range(0, 8, 4)))
    first, _ = batch_normalizers(
        recalibrate_in_one_pass(net(BatchNorm), (x[i:i + 4] for i in range(0, 8, 4)))[0]
    )
    kernel, bias = net(BatchNorm).get_weights()[:2]
    np.testing.assert_allclose(first.moving_variance, (x @ kernel + bias).var(0), rtol=1e-4)

    class Once:
        def __init__(self):
            self.batches = iter([x])

        def __iter__(self):
            return self.batches

    with pytest.raises(ValueError, match="the Once gave no batches when it was read again"):
        recalibrated(net(BatchNorm), Once())


BAD = {
    "no batches": (lambda: [], {}, ValueError, "received 0 examples"),
    "empty dataset": (lambda: batched(data(4, 3)).take(0), {}, ValueError, "received 0 examples"),
    "endless": (lambda: batched(data(4, 3)).repeat(), {}, ValueError, "Dataset without an end"),
    "a word": (lambda: "x.npy", {}, TypeError, "received a str; expected an array"),
    "a number": (lambda: 3, {}, TypeError, "received a int; expected an array"),
    "no size": (lambda: data(4, 3), {"batch_size": 0}, ValueError, "batch_size=0; expected"),
    "half": (lambda: data(4, 3), {"batch_size": 2.5}, ValueError, "batch_size=2.5; expected"),
}


@pytest.mark.parametrize("make, settings, error, text", BAD.values(), ids=BAD)
@pytest.mark.parametrize("surgery", [recalibrate, recalibrate_in_one_pass])
def test_what_is_no_training_set_is_named(make, settings, error, text, surgery):
    with pytest.raises(error, match=f"^{surgery.__name__}: .*{text}"):
        surgery(net(BatchNorm), make(), **settings)


def test_arrays_of_different_lengths_and_models_that_are_none_are_named():
    one, other = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([one, other], BatchNorm()(one + other))
    with pytest.raises(ValueError, match=r"received arrays of \[4, 5\] examples"):
        recalibrated(model, [data(4, 3), data(5, 3)])
    with pytest.raises(TypeError, match="recalibrate: received a BatchNormalization"):
        recalibrated(BatchNorm(), data(4, 3))
    with pytest.raises(ValueError, match="recalibrate: .* is not built"):
        recalibrated(keras.Sequential([BatchNorm()]), data(4, 3))


# ---------------------------------------------------------------- kinds of layers


@pytest.mark.parametrize("make", [
    BatchRenorm, functools.partial(keras.layers.BatchNormalization, renorm=True),
    functools.partial(BatchNorm, renorm=True),
], ids=["variant", "keras", "argument"])
def test_renorm_goes_on_from_the_new_statistics(make):
    """Set alone, the moving variance would be lost to the next update, made of moving_stddev."""
    model = shaken(keras.Sequential([keras.Input((3,)), make(momentum=1.0, renorm_momentum=1.0)]))
    x = data(20, 3)
    layer, = batch_normalizers(recalibrated(model, x))
    stddev = np.sqrt(x.var(0) + layer.epsilon)
    for name, value in (("moving_mean", x.mean(0)), ("moving_variance", x.var(0)),
                        ("moving_stddev", stddev), ("renorm_mean", x.mean(0)),
                        ("renorm_stddev", stddev)):
        np.testing.assert_allclose(getattr(layer, name), value, rtol=1e-5, err_msg=name)
    layer(x[:5] * 3, training=True)  # with a momentum of 1 nothing moves
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-4)


VARIANTS = {
    "ghost": functools.partial(GhostBatchNorm, virtual_batch_size=3),
    "conditional": ConditionalBatchNorm,
    "frozen affine": functools.partial(FrozenBatchNorm, freeze="affine"),
    "unbiased": functools.partial(BatchNorm, unbiased_variance=True, debias=True),
    "axis 1": functools.partial(BatchNorm, axis=1),
    "float64": functools.partial(BatchNorm, dtype="float64"),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_gets_the_statistics_of_its_channels(make):
    model = shaken(keras.Sequential([keras.Input((3, 3)), make()]))
    x = data(20, 3, 3)
    layer, = batch_normalizers(recalibrated(model, x, batch_size=7))
    axes = (0, 2) if layer.axis == 1 else (0, 1)
    np.testing.assert_allclose(layer.moving_mean, x.mean(axes), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, x.var(axes), rtol=1e-4)


def test_layers_whose_statistics_training_leaves_alone_are_left_alone():
    frozen = BatchNorm()
    model = keras.Sequential([
        keras.Input((4,)), frozen, FrozenBatchNorm(freeze="statistics"),
        keras.layers.GroupNormalization(2), keras.layers.LayerNormalization(), BatchNorm(),
    ])
    frozen.trainable = False
    shaken(model)
    copy, x = recalibrated(model, data(9, 4)), data(9, 4)
    for old, new in zip(model.layers[:-1], copy.layers[:-1], strict=True):
        for one, other in zip(old.weights, new.weights, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=one.path)
    before = keras.Model(model.inputs[0], model.layers[-2].output)(x, training=False)
    np.testing.assert_allclose(copy.layers[-1].moving_mean, as_array(before).mean(0), rtol=1e-4)


# ---------------------------------------------------------------- in one pass


@pytest.mark.parametrize("kind", [*KINDS, BatchRenorm], ids=["ours", "keras", "renorm"])
def test_one_pass_pools_what_batches_in_training_mode_give(kind):
    model, x = net(kind), data(23, 3)
    batches = Counted([x[:8], x[8:]])
    copy = recalibrate_in_one_pass(model, batches)[0]
    assert batches.passes == 1
    first, second = batch_normalizers(copy)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    norm = batch_normalizers(model)[0]
    z = x.astype(np.float64) @ dense[0].kernel.numpy() + dense[0].bias.numpy()
    np.testing.assert_allclose(first.moving_mean, z.mean(0), rtol=1e-4)
    np.testing.assert_allclose(first.moving_variance, z.var(0), rtol=1e-4)
    if kind is BatchRenorm:  # normalizes with its moving statistics, too
        return
    parts = [
        (part - part.mean(0)) / np.sqrt(part.var(0) + norm.epsilon) * norm.gamma.numpy()
        + norm.beta.numpy() for part in (z[:8], z[8:])
    ]
    z = np.tanh(np.concatenate(parts)) @ dense[1].kernel.numpy() + dense[1].bias.numpy()
    np.testing.assert_allclose(second.moving_mean, z.mean(0), rtol=1e-4)
    np.testing.assert_allclose(second.moving_variance, z.var(0), rtol=1e-4)


def test_one_pass_leaves_out_dropout_and_comes_close_with_large_batches():
    model = net(BatchNorm, inner=lambda x: keras.layers.Dropout(0.5)(keras.ops.tanh(x)))
    x = data(600, 3)
    near = snapshot(recalibrate_in_one_pass(model, x, 200)[0])
    exact = snapshot(recalibrated(model, x))
    for path, value in exact.items():
        np.testing.assert_allclose(near[path], value, rtol=0.02, atol=0.02, err_msg=path)


# ---------------------------------------------------------------- certificates


def test_a_certificate_says_how_far_statistics_moved_and_how_many_batches_do():
    model = shaken(keras.Sequential([keras.Input((3,)), BatchNorm(name="bn")]))
    layer, x = model.layers[0], np.sort(data(40, 3), 0)  # sorted: the first batches mislead
    copy, certificate = recalibrate(model, x, batch_size=4)
    assert snapshot(copy).keys() == snapshot(model).keys() and not copy.compiled
    old_mean, old_variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    shift = np.max(np.abs(x.mean(0) - old_mean) / np.sqrt(old_variance))
    factor = np.max(np.exp(np.abs(np.log(x.var(0) / old_variance))))
    row, = certificate.rows
    assert (row.path, row.before, row.after, row.fate) == (
        "bn", "BatchNorm", "BatchNorm", "recalibrated",
    )
    assert row.note == (
        f"mean by {shift:.2g} standard deviations, variance by a factor {factor:.2g}; "
        "40 values a channel"
    )
    errors, scale = {}, np.sqrt(x.var(0) + layer.epsilon)
    for batches in (1, 2, 4, 8):
        part = x[:4 * batches]
        errors[str(batches)] = max(
            np.max(np.abs(part.mean(0) - x.mean(0)) / scale),
            np.max(np.abs(np.sqrt(part.var(0) + layer.epsilon) / scale - 1)),
        )
    assert certificate.figures["error after batches"] == pytest.approx(errors, abs=1e-3)
    assert certificate.figures["batches enough"].startswith("more than 8: all 10 were read")
    even = np.tile(data(4, 3), (10, 1))  # each batch is like all others
    figures = recalibrate(model, even, batch_size=4)[1].figures
    assert figures["batches enough"] == "1 of 10, for an error below 0.05"
    figures = recalibrate(model, even)[1].figures
    assert figures["batches enough"] == "not measured: there is one batch only"
    assert figures["judged by"] == "not measured: the data have no labels"


class Doubled(keras.metrics.Metric):
    """Twice the mean error; has a state."""

    def __init__(self, name="doubled", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total, self.n = self.add_variable((), "zeros"), self.add_variable((), "zeros")

    def update_state(self, y, outputs, sample_weight=None):
        self.total.assign_add(2 * keras.ops.sum(keras.ops.abs(y - outputs[:, 0])))
        self.n.assign_add(keras.ops.sum(keras.ops.ones_like(y)))

    def result(self):
        return self.total / self.n


def test_a_certificate_of_numbers_that_are_none_is_strict_json():
    model = net(BatchNorm)
    layer = next(layer for layer in model._flatten_layers() if hasattr(layer, "moving_mean"))
    layer.moving_mean.assign(layer.moving_mean * np.nan)
    _, certificate = recalibrate(model, data(5, 3))
    found = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert found["difference"] == "nan" and found["surgery"] == "recalibrate"
    assert [row["path"] for row in found["rows"]] == [row.path for row in certificate.rows]


def spoilt(place, value):
    x = data(9, 3)
    x[place] = value
    return x


def lost_kernel():
    model = net(BatchNorm)
    layer = next(one for one in model.layers if getattr(one, "units", 0) == 2)
    layer.kernel.assign(layer.kernel * np.nan)
    return model, layer.kernel.path


@pytest.mark.parametrize("surgery", [recalibrate, recalibrate_in_one_pass])
def test_statistics_that_are_no_numbers_are_refused_by_the_example_or_weight_at_fault(surgery):
    for value in (np.nan, np.inf):
        told = f"^{surgery.__name__}: example 7 of the data holds NaN or infinity, and so would"
        with pytest.raises(ValueError, match=told):
            surgery(net(BatchNorm), spoilt((7, 1), value), batch_size=4)
    with pytest.raises(ValueError, match="no finite mean and variance.* are numbers: it overflows"):
        surgery(net(BatchNorm), spoilt(7, 1e30), batch_size=4)
    model, path = lost_kernel()
    with pytest.raises(ValueError, match=f"are numbers: NaN or infinity is in {path} of the model"):
        surgery(model, data(9, 3))


def test_nan_that_reaches_no_statistics_is_no_matter():
    inputs = keras.Input((4, 2))
    x = data(6, 4, 2)
    x[:, 2:] = np.nan
    mask = np.arange(4) < 2

    class Known(keras.layers.Layer):
        def call(self, values):
            values._keras_mask = keras.ops.broadcast_to(mask, keras.ops.shape(values)[:2])
            return values

    model = keras.Model(inputs, BatchNorm()(Known()(inputs)))
    layer, = batch_normalizers(recalibrated(model, x))
    np.testing.assert_allclose(layer.moving_mean.numpy(), x[:, :2].mean((0, 1)), rtol=1e-5)
    cleaned = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(keras.ops.nan_to_num),
                                BatchNorm()])
    x = spoilt((7, 1), np.nan)
    layer, = batch_normalizers(recalibrated(cleaned, x))
    np.testing.assert_allclose(layer.moving_mean, np.nan_to_num(x).mean(0), rtol=1e-5)


def test_the_row_of_a_layer_says_which_statistics_were_no_numbers():
    model = net(BatchNorm)
    layer, _ = batch_normalizers(model)
    layer.moving_variance.assign(layer.moving_variance * np.inf)
    _, certificate = recalibrate(model, data(9, 3))
    notes = [row.note for row in certificate.rows]
    assert notes[0].startswith("the old statistics were not finite") and "mean by" in notes[1]
    half = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(dtype="float16")])
    with pytest.raises(ValueError, match="moving_variance of .* up to .* its float16 cannot hold"):
        recalibrate(half, 300 * data(9, 3))


def test_a_stack_of_nets_of_which_one_diverged_has_statistics_of_the_others():
    x = spoilt((slice(None), 1), np.nan)
    flat = keras.Sequential([keras.Input((3,)), BatchNorm()])
    layer, = batch_normalizers(recalibrated(flat, x, finite=False))
    np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)


def test_examples_on_which_a_model_cannot_be_run_are_refused_in_words():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.norm = keras.layers.Dense(4), BatchNorm()

        def call(self, x, training=None):
            return self.norm(self.dense(x), training=training)

    model = Own()
    model(data(2, 3))
    with pytest.raises(ValueError, match=r"^recalibrate: .* shape \(4, 5\), on which 'own' cannot "
                       r"be run: ValueError: Input 0 .*shape \(4, 5\)\. Expected batches") as found:
        recalibrate(model, data(4, 5))
    assert "\x1b" not in str(found.value) and "Arguments" not in str(found.value)


@pytest.mark.slow
def test_a_compiled_model_is_judged_by_its_own_loss_and_stays_as_it_is():
    model, x = net(BatchNorm), data(20, 3)
    y = x[:, 0]
    model.compile("sgd", lambda y, outputs: keras.ops.mean((y - outputs[:, 0]) ** 2),
                  metrics=[Doubled()])
    model.evaluate(x, y, verbose=0)
    before = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    copy, certificate = recalibrate(model, (x, y), batch_size=7)
    for judged, one in (("before", model), ("after", copy)):
        outputs = as_array(one(x))[:, 0]
        assert certificate.figures[judged] == pytest.approx(
            {"loss": np.mean((y - outputs) ** 2), "doubled": 2 * np.mean(np.abs(y - outputs))},
            rel=1e-4,
        )
    assert certificate.figures["before"]["loss"] != certificate.figures["after"]["loss"]
    assert certificate.figures["judged by"].startswith("as the model is compiled")
    for variable, value in zip([*model.variables, *model.metrics_variables], before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def classes(softmax):
    model = keras.Sequential([keras.Input((3,)), BatchNorm(), keras.layers.Dense(4)])
    if softmax:
        model.add(keras.layers.Softmax())
    return shaken(model)


def crossentropy(outputs, y, softmax):
    if not softmax:
        outputs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    return -np.mean(np.log(outputs[np.arange(len(y)), y]))


@pytest.mark.slow
def test_a_loss_is_guessed_where_labels_and_outputs_allow_one_reading_only():
    x, y = data(12, 3), np.arange(12) % 4
    for softmax, labels in ((True, y), (False, y[:, None]), (True, np.eye(4)[y])):
        model = classes(softmax)
        copy, certificate = recalibrate(model, (x, labels))
        outputs = as_array(copy(x))
        assert certificate.figures["after"] == pytest.approx({
            "loss": crossentropy(outputs, y, softmax), "accuracy": np.mean(outputs.argmax(1) == y),
        }, rel=1e-4)
        assert "guessed from labels and outputs: the model is not" in (
            certificate.figures["judged by"])
    figures = recalibrate(net(BatchNorm), (x, x[:, :2]))[1].figures
    assert figures["judged by"].startswith("mean squared error, guessed")
    for labels in (x[:, 0], y.astype(float), np.ones((12, 2)), y + 1):
        judged = recalibrate(net(BatchNorm), (x, labels))[1].figures
        assert "before" not in judged and "can be read in several ways" in judged["judged by"]
    flat = keras.Sequential([keras.Input((3,)), BatchNorm()])
    judged = recalibrate(flat, ((x[i:i + 4], x[i:i + 4]) for i in (0, 4)))[1].figures["judged by"]
    assert judged == "not measured: the examples can be read once only"


def test_a_model_in_which_nothing_could_be_done_is_told_of():
    frozen = keras.Sequential([keras.Input((3,)), BatchNorm(name="bn", trainable=False)])
    with pytest.warns(UserWarning, match="recalibrate: no statistics were computed .*bn: frozen"):
        _, certificate = recalibrate(frozen, data(5, 3))
    assert certificate.count("left") == 1
    bare = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.warns(UserWarning, match="which has no batch normalization"):
        recalibrate(bare, data(5, 3))


def test_a_layer_that_keras_does_not_track_is_recalibrated_too():
    model, x = KINDS_OF_MODEL["in_a_lambda"](), inputs_of("in_a_lambda")
    before = as_array(model(x))
    copy, certificate = recalibrate(model, x)
    assert "not tracked by Keras, in no file" in certificate.rows[0].note
    np.testing.assert_allclose(
        copy(x), 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(model(x), before)


@pytest.mark.slow
def test_averaged_weights_are_evaluated_in_the_middle_of_fit_with_statistics_of_their_own():
    """Keras's SwapEMAWeights exchanges the weights and leaves the statistics of the old ones."""
    x = data(64, 3)
    y = (x @ [1.0, -2.0, 0.5]).astype("float32")
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1)(BatchNorm(momentum=0.5)(keras.layers.Dense(4)(inputs)))
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.SGD(0.02, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse")
    old, seen = [], []

    def before_test(logs=None):
        kernel, bias = model.layers[1].get_weights()
        old.append(recalibrate_in_place(model, x))
        seen.append((x @ kernel + bias, snapshot(model)))

    mend = keras.callbacks.LambdaCallback()
    mend.on_test_begin, mend.on_test_end = before_test, lambda logs=None: restored(model, old)
    model.fit(x, y, validation_data=(x, y), epochs=2, batch_size=16, verbose=0, shuffle=False,
              callbacks=[keras.callbacks.SwapEMAWeights(), mend])
    for hidden, held in seen:
        mean, variance = (held[path] for path in held)
        np.testing.assert_allclose(mean, hidden.mean(0), atol=1e-4)
        np.testing.assert_allclose(variance, hidden.var(0), rtol=1e-3)
    assert len(seen) == 2 and not old


def restored(model, old):
    restore(model, old.pop())
