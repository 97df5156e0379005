"""The gap between inference and training mode, against NumPy in float64 and known cases."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats

from bn_keras import BatchNorm
from bn_keras.diagnostics.evaluations import Evaluations, read
from bn_keras.diagnostics.examination import Examination
from bn_keras.diagnostics.findings.statistics import cost_of_averages
from bn_keras.diagnostics.gap import distances, gap
from bn_keras.diagnostics.passes import Passes

EPSILON = 1e-3
rng = np.random.default_rng(0)
KERNEL, GAMMA, BETA = rng.normal(size=(4, 3)), rng.uniform(0.5, 2, 4), rng.normal(size=4)
MEAN, VARIANCE = rng.normal(size=4), rng.uniform(0.5, 2, 4)


def batches(count, size=8, mean=1.0, scale=2.0, seed=1):
    """Batches of their own statistics, [(x, y), …], float32."""
    draw = np.random.default_rng(seed)
    return [
        (draw.normal(mean, scale, (size, 4)).astype("float32"), draw.integers(0, 3, size))
        for _ in range(count)
    ]


def model_of(kind, mean=MEAN, variance=VARIANCE):
    """BN and a linear layer, in float64 so that the oracle agrees in many digits."""
    norm = kind(epsilon=EPSILON, dtype="float64", name="norm")
    model = keras.Sequential([
        keras.Input((4,), dtype="float64"), norm, layers.Dropout(0.5, seed=0, dtype="float64"),
        layers.Dense(3, use_bias=False, dtype="float64"),
    ])
    for name, value in zip(("gamma", "beta", "moving_mean", "moving_variance"),
                           (GAMMA, BETA, mean, variance)):
        getattr(norm, name).assign(value)
    model.layers[-1].kernel.assign(KERNEL)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def losses(data, statistics):
    """Mean loss of each batch in NumPy; statistics of each batch for None."""
    found = []
    for x, y in data:
        x = x.astype(np.float64)
        mean, variance = (x.mean(0), x.var(0)) if statistics is None else statistics
        logits = ((x - mean) / np.sqrt(variance + EPSILON) * GAMMA + BETA) @ KERNEL
        chosen = np.take_along_axis(logits, y[:, None], 1)[:, 0]
        found.append((np.log(np.exp(logits).sum(1)) - chosen).mean())
    return np.array(found)


def exact(data):
    x = np.concatenate([x for x, _ in data]).astype(np.float64)
    return x.mean(0), x.var(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [layers.BatchNormalization, BatchNorm], ids=["keras", "ours"])
def test_every_term_and_its_interval_are_those_of_numpy(kind):
    data, train = batches(5), batches(7, mean=0.5, scale=1.5, seed=2)
    found = gap(model_of(kind), data, train=train, layers=1)
    averaged, shifted = losses(data, (MEAN, VARIANCE)), losses(data, exact(train))
    own, right, batch = losses(data, exact(data)), losses(train, exact(train)), losses(train, None)
    paired = {"lag": (averaged, shifted), "shift": (shifted, own), "noise": (right, batch)}
    for name, (one, other) in paired.items():
        term, test = found.terms[name], stats.ttest_rel(one, other).confidence_interval()
        assert (term.value, term.low, term.high) == pytest.approx(
            ((one - other).mean(), *test), rel=1e-5, abs=1e-6
        ), name
    for name, one, other in (("data", own, right), ("total", averaged, batch)):
        test = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
        term = found.terms[name]
        assert (term.value, term.low, term.high) == pytest.approx(
            (one.mean() - other.mean(), *test), rel=1e-4, abs=1e-6
        ), name
    parts = sum(found.terms[name].value for name in ("lag", "shift", "data", "noise"))
    assert parts == pytest.approx(found.terms["total"].value, abs=1e-12)
    assert found.inference == pytest.approx(averaged.mean(), rel=1e-5)
    assert found.training == pytest.approx(batch.mean(), rel=1e-5)
    (layer,) = found.layers  # the only one, so that it has the whole of both
    assert layer.path == "norm"
    assert (layer.lag, layer.noise) == (found.terms["lag"], found.terms["noise"])


def repeated(data, times=3):
    """The same batch again and again: its statistics are the exact ones, so there is no noise."""
    return data[:1] * times


def test_averages_that_lag_and_nothing_else_give_a_lag_and_nothing_else():
    data = repeated(batches(1))
    found = gap(model_of(BatchNorm), data, train=data)
    assert found.terms["lag"].value > 0.01 and found.worst == "lag"
    for name in ("shift", "data", "noise"):
        assert found.terms[name].value == pytest.approx(0, abs=1e-9), name


@pytest.mark.slow
def test_batches_that_differ_and_nothing_else_give_noise_and_nothing_else():
    data = batches(6, size=3)
    found = gap(model_of(BatchNorm, *exact(data)), data, train=data)
    assert abs(found.terms["noise"].value) > 0.01
    for name in ("lag", "shift", "data"):
        assert found.terms[name].value == pytest.approx(0, abs=1e-6), name
    assert found.terms["noise"].value == pytest.approx(found.terms["total"].value)


def test_shifted_and_scaled_data_and_nothing_else_give_a_shift_and_nothing_else():
    """Normalized by their own statistics they are the training examples again, but for epsilon."""
    train = repeated(batches(1))
    data = [((3 * x + 5).astype("float32"), y) for x, y in train]
    found = gap(model_of(BatchNorm, *exact(train)), data, train=train)
    assert found.terms["shift"].value > 0.1 and found.worst == "shift"
    for name in ("lag", "noise"):
        assert found.terms[name].value == pytest.approx(0, abs=1e-6), name
    assert found.terms["data"].value == pytest.approx(0, abs=1e-3)


def test_other_labels_are_a_matter_of_the_data_and_not_of_statistics():
    train = repeated(batches(1))
    data = [(x, (y + 1) % 3) for x, y in train]
    found = gap(model_of(BatchNorm, *exact(train)), data, train=train)
    assert abs(found.terms["data"].value) > 0.05
    for name in ("lag", "shift", "noise"):
        assert found.terms[name].value == pytest.approx(0, abs=1e-6), name


def test_one_batch_has_no_interval_and_says_so():
    found = gap(model_of(BatchNorm), batches(1))
    assert found.terms["lag"].low is None and not found.terms["lag"].is_clear
    assert found.worst is None and "one batch: no interval" in str(found)


def two_layers(late):
    """Two BN layers, the statistics of one of which are late."""
    x = np.random.default_rng(3).normal(2, 3, (48, 4)).astype("float32")
    data = x, np.arange(48) % 3
    model = keras.Sequential([
        keras.Input((4,)), BatchNorm(name="first"), layers.Dense(4, activation="tanh"),
        BatchNorm(name="second"), layers.Dense(3, activation="softmax"),
    ])
    found = Evaluations(Passes(model), read(model, data, 8, 48, "test"))
    for layer, values in zip((model.layers[0], model.layers[2]), found.exact):
        for name, value in values.items():
            getattr(layer, name).assign(value)
    layer = model.get_layer(late)
    layer.moving_mean.assign(layer.moving_mean + 2 * np.sqrt(layer.moving_variance))
    layer.moving_variance.assign(layer.moving_variance * 9)
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize("late, other", [("first", "second"), ("second", "first")])
def test_the_layer_that_is_late_has_the_lag_and_the_other_none(late, other):
    model, data = two_layers(late)
    found = gap(model, data, batch_size=8, layers=2, loss="sparse_categorical_crossentropy")
    one, rest = found.layers
    assert (one.path, rest.path) == (late, other)
    assert abs(one.lag.value) > 100 * abs(rest.lag.value)
    assert rest.lag.value == pytest.approx(0, abs=1e-5)
    shifts = dict(zip(("first", "second"), distances(Evaluations(
        Passes(model), read(model, data, 8, 48, "test")))))
    assert shifts[late] == pytest.approx((2, 9), rel=0.02)
    assert shifts[other] == pytest.approx((0, 1), abs=1e-3)


@pytest.mark.parametrize("data, train, message", [
    (np.zeros((4, 4), "float32"), None, "gap: no labels"),
    (None, None, "gap: received no data"),
    ((np.zeros((4, 4)), np.zeros(4)), None, "can be read in several ways"),
], ids=["no labels", "no data", "several losses"])
def test_a_gap_that_cannot_be_measured_says_why(data, train, message):
    model = keras.Sequential([keras.Input((4,)), BatchNorm(), layers.Dense(1)])
    with pytest.raises(ValueError, match=message):
        gap(model, data, train=train)


def test_a_model_without_batch_normalization_has_no_such_gap():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)], name="plain")
    with pytest.raises(ValueError, match="gap: 'plain' has no batch normalization"):
        gap(model, batches(2), loss="mse")


@pytest.mark.slow
@pytest.mark.parametrize("late, other", [("first", "second"), ("second", "first")])
def test_a_finding_is_charged_with_its_own_layers_only(late, other):
    keras.utils.set_random_seed(0)
    model, data = two_layers(late)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    examined = Examination(model, data, batch_size=8)
    layers_of = {one.path: one for one in examined.normalizers}
    present = examined.scored("averaged").loss
    assert abs(present - examined.scored("exact").loss) > 0.01
    assert examined.scored("averaged", [layers_of[late].index]).loss == pytest.approx(present)
    assert examined.outputs_changed([layers_of[late].index]) > 0.1
    cost, note, clear = cost_of_averages(examined, [layers_of[other]])
    assert (cost, clear) == (None, False) and "only" in note
    assert cost_of_averages(examined, [layers_of[late]])[2]


def test_numbers_that_are_none_are_text_in_json():
    model = model_of(BatchNorm)
    model.layers[-1].kernel.assign(np.full_like(KERNEL, np.nan))
    found = json.loads(json.dumps(gap(model, batches(2)).to_dict(), allow_nan=False))
    assert found["inference"] == "nan" and found["terms"]["lag"]["value"] == "nan"


@pytest.mark.parametrize("loss, name", [
    (keras.losses.BinaryCrossentropy(from_logits=True), "accuracy"),
    (keras.losses.BinaryCrossentropy(), "probability"), ("binary_crossentropy", "probability"),
    (keras.losses.BinaryFocalCrossentropy(from_logits=True), None),
], ids=["logits", "probabilities", "name", "focal"])
def test_the_accuracy_of_two_classes_is_cut_where_the_loss_says(loss, name):
    data = [(x, (y > 0).astype("int32")) for x, y in batches(3)]
    head = "sigmoid" if name == "probability" else None
    model = keras.Sequential([keras.Input((4,)), BatchNorm(), layers.Dense(1, head, name="head")])
    model.layers[-1].kernel.assign(np.zeros((4, 1)))
    model.layers[-1].bias.assign([0.3])  # 1 as a logit and as its probability, 0 if taken for one
    model.compile("sgd", loss)
    found = gap(model, data).metrics
    right = [(model(x).numpy()[:, 0] > (0.5 if head else 0.0)) == y for x, y in data]
    assert list(found) == (["accuracy"] if name else [])
    if name:
        assert found["accuracy"][0] == pytest.approx(np.mean(right))


@pytest.mark.slow
def test_one_loss_for_two_outputs_is_that_of_evaluate():
    inputs = keras.Input((4,))
    x = BatchNorm()(inputs)
    model = keras.Model(inputs, [layers.Dense(3, "softmax", name=name)(x) for name in "ab"])
    model.compile("sgd", "sparse_categorical_crossentropy")
    (x, y), = batches(1)
    found = gap(model, (x, [y, y]))
    expected = model.evaluate(x, [y, y], verbose=0, return_dict=True)["loss"]
    assert found.inference == pytest.approx(expected, rel=1e-5) and found.metrics == {}
