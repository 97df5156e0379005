"""Findings of modes, statistics and inputs: planted faults, causes, and remedies that mend."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from bn_keras import BatchNorm
from bn_keras.diagnosis import doctor
from bn_keras.surgery.recalibrate import recalibrated

KERAS = layers.BatchNormalization


def classes(examples=192, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, examples)
    centers = 2 * np.random.default_rng(9).normal(size=(3, channels))
    return (centers[y] + rng.normal(size=(examples, channels))).astype("float32"), y


def classifier(x, y, norm, *parts):
    """A normalizer with exact statistics behind `parts`, and a linear layer fitted to labels."""
    model = keras.Sequential([keras.Input(x.shape[1:]), *parts, norm, layers.Flatten()])
    model = recalibrated(model, x)
    features = np.asarray(keras.ops.cast(model(x), "float32"), np.float64)
    head = layers.Dense(3)
    model = keras.Sequential([keras.Input(x.shape[1:]), *model.layers, head])
    weights = np.linalg.lstsq(np.c_[features, np.ones(len(y))], 4 * np.eye(3)[y], rcond=None)[0]
    head.kernel.assign(weights[:-1]), head.bias.assign(weights[-1])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def mended(found, model, data, **more):
    """The names of what is found after the remedy."""
    scope = {"model": model, "data": data, "keras": keras, **more}
    exec(found.remedy, scope)
    model = scope["model"]
    if not model.compiled:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return {one.name for one in doctor(model, scope["data"]).findings}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [
    "float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16",
])
@pytest.mark.parametrize("kind", [KERAS, BatchNorm], ids=["keras", "ours"])
def test_a_healthy_layer_is_healthy_in_every_precision(kind, dtype):
    x, y = classes()
    found = doctor(classifier(x, y, kind(dtype=dtype)), (x, y))
    # Keras's layer keeps half-precision statistics in some of these.
    assert {one.name for one in found.findings} <= {"half_precision_statistics"}, found
    assert not found.not_looked and found.ok


@pytest.mark.slow
def test_offsets_of_whole_batches_are_noise_and_freezing_makes_both_modes_alike():
    x, y = classes()
    model = classifier(x, y, BatchNorm())
    offsets = np.random.default_rng(1).normal(0, 4, (6, 1, x.shape[1]))
    data = [((x[32 * n:32 * n + 32] + offsets[n]).astype("float32"), y[32 * n:32 * n + 32])
            for n in range(6)]
    model = recalibrated(model, data)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    (found,) = doctor(model, data).findings
    assert (found.name, found.evidence["cause"]) == ("train_inference_gap", "noise")
    assert found.evidence["noise"] > 0.3 and abs(found.evidence["lag"]) < 0.01
    assert mended(found, model, data) == set()


@pytest.mark.slow
def test_other_data_are_a_shift_where_training_data_tell():
    x, y = classes()
    model, data = classifier(x, y, KERAS()), (2 * x + 5, y)
    (found,) = doctor(model, data, train=(x, y)).findings
    assert (found.name, found.evidence["cause"]) == ("train_inference_gap", "shift")
    assert mended(found, model, data) == set()


@pytest.mark.slow
def test_the_only_layer_has_the_whole_lag_in_the_table():
    x, y = classes()
    model = classifier(x, y, KERAS())
    model.layers[0].moving_mean.assign(model.layers[0].moving_mean + 3)
    found = doctor(model, (x, y), layers=1)
    assert found.table[0].gap == pytest.approx(found.gap.terms["lag"].value) and (
        found.table[0].gap > 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, size, severity", [
    (1, 1, "wrong results"), (6, 1, "costs accuracy"), (8, 1, None), (1, 2, "costs accuracy"),
    (2, 2, None),
])
def test_few_values_are_counted_over_batch_and_positions(batch_size, size, severity):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, size, size, 3)).astype("float32")
    y = np.arange(24) % 3
    model = classifier(x, y, BatchNorm(name="norm"))
    found = doctor(model, (x, y), batch_size=batch_size, only="few_values").findings
    assert [one.severity for one in found] == ([severity] if severity else [])
    if found:
        assert found[0].evidence["values"] == {"norm": batch_size * size**2}
        assert "few_values" not in mended(found[0], model, (x, y))


@pytest.mark.slow
@pytest.mark.parametrize("examples, last", [(129, 1), (130, None), (128, None)])
def test_a_last_batch_of_one_is_seen_from_the_number_of_examples(examples, last):
    x, y = classes(examples)
    model = classifier(x, y, KERAS())
    found = doctor(model, (x, y)).named("few_values")
    assert [one.evidence["last_batch"] for one in found] == ([last] if last else [])
    for one in found:
        assert "few_values" not in mended(one, model, (x, y))


def dataset(x, y, size):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


@pytest.mark.slow
def test_values_are_counted_in_the_batches_of_training():
    x, y = classes(40)
    model = classifier(x, y, KERAS(name="norm"))
    found, = doctor(model, (x, y), train=dataset(x, y, 2), only="few_values").findings
    assert found.evidence["values"] == {"norm": 2} and found.symptom.startswith("A batch of 2 ")
    assert not doctor(model, dataset(x, y, 1), train=(x, y), only="few_values").findings


@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "tuple", "dataset", "batches"])
def test_data_of_every_form_are_mended(form):
    """A last batch of one, NaN, and a constant input far from zero, in turn."""
    x, y = classes(65)

    def data(x):
        return {"array": x, "tuple": (x, y), "dataset": dataset(x, y, 32),
                "batches": list(dataset(x, y, 32).as_numpy_iterator())}[form]

    nan, far = x.copy(), (x + 1e4).astype("float32")
    nan[3, 1], far[:, 0] = np.nan, 0.1
    for name, values, norm in (
        ("few_values", x, KERAS()), ("not_finite", nan, KERAS()),
        ("far_from_zero", far, KERAS(dtype="mixed_float16")),
    ):
        model = recalibrated(keras.Sequential([keras.Input((6,)), norm]), np.nan_to_num(values))
        found, = doctor(model, data(values), only=name).findings
        if form == "batches":
            assert found.remedy.startswith("# where data ")
            continue
        scope = {"data": data(values), "keras": keras}
        exec(found.remedy, scope)
        again = doctor(model, scope["data"], only=[name, "not_finite"])
        assert not again.findings and "not_finite" in again.looked, name


@pytest.mark.slow
@pytest.mark.parametrize("norm, mean, how", [
    (KERAS(), 1e6, "its output"), (KERAS(synchronized=True), 3e3, "training mode"),
    (KERAS(dtype="mixed_float16"), 1e3, "input"), (KERAS(), 1e3, None), (BatchNorm(), 1e6, None),
], ids=["keras", "synchronized", "half", "nearer", "ours"])
def test_values_far_from_zero_are_found_where_digits_are_lost(norm, mean, how):
    x, y = classes()
    data = (x + mean).astype("float32"), y
    model = classifier(*data, norm)
    found = doctor(model, data, only="far_from_zero").findings
    assert [how in one.symptom for one in found] == ([True] if how else [])
    if how:
        assert found[0].evidence["lost"][norm.name] > 0.01
        assert "far_from_zero" not in mended(found[0], model, data)


@pytest.mark.slow
@pytest.mark.parametrize("weight, value, words", [
    ("moving_mean", np.nan, "mean: 1 of 6 channels"), ("moving_variance", -1.0, "variance: -1"),
    ("moving_variance", np.inf, "variance: 1 of 6"), ("moving_variance", 1e20, "up to 1e+20"),
    ("gamma", np.nan, "gamma: 1 of 6"),
])
def test_numbers_that_are_none_are_named_and_statistics_are_mended(weight, value, words):
    data = classes()
    model = classifier(*data, KERAS(name="norm"))
    variable = getattr(model.layers[0], weight)
    variable.assign(np.append(value, variable.numpy()[1:]))
    (found,) = doctor(model, data).named("not_finite")
    assert found.layer == "norm" and words in found.symptom
    left = mended(found, model, data)
    assert ("not_finite" in left) == (weight == "gamma")  # no code brings a lost weight back


@pytest.mark.slow
def test_data_with_nan_are_named_and_nothing_else_is_blamed():
    x, y = classes()
    model = classifier(x, y, BatchNorm())
    x = x.copy()
    x[:3, 1] = np.nan
    found = doctor(model, (x, y))
    assert [one.name for one in found.findings] == ["not_finite"]
    assert "3 of 192 examples" in found.findings[0].symptom
    assert {"averages_lag", "train_inference_gap"} <= {one.name for one in found.not_looked}
    assert mended(found.findings[0], model, (x, y)) == set()
