"""The average of several models: its weights by NumPy, its statistics computed anew or merged."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from zoo import NAMES, ZOO, as_array, inputs_of, predictions, told

from bn_keras import BatchNorm, FrozenBatchNorm, statistics
from bn_keras.surgery.average import average
from bn_keras.surgery.copies import copy_model
from bn_keras.surgery.freeze import freeze
from bn_keras.surgery.recalibrate import recalibrated

KERAS = layers.BatchNormalization
KINDS = dict(zip(NAMES, ZOO))


def shaken(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def net(seed, kind=BatchNorm, **names):
    model = keras.Sequential([
        keras.Input((3,)), layers.Dense(4), kind(name=names.get("one")),
        layers.Dropout(0.5, seed=3), layers.Dense(2), kind(name=names.get("other")),
    ])
    return shaken(model, seed)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype("float32")


def by_hand(models, shares):
    """Weights averaged and statistics pooled, in float64."""
    found = {}
    for n, variables in enumerate(zip(*(model.weights for model in models))):
        values = np.stack([v.numpy().astype(np.float64) for v in variables])
        found[n] = np.tensordot(shares, values, 1)
        if variables[0].name == "moving_variance":  # its mean is one before
            means = np.stack([model.weights[n - 1].numpy() for model in models]).astype(np.float64)
            found[n] += np.tensordot(shares, (means - found[n - 1]) ** 2, 1)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BatchNorm, KERAS])
def test_weights_are_averaged_and_statistics_merged_as_numpy_does_it(kind):
    models = [net(1, kind), net(2, kind, one="a", other="b"), net(3, kind)]
    before = [[v.numpy() for v in model.variables] for model in models]
    with pytest.warns(UserWarning, match="merged statistics .* belong to what each model gives"):
        model, certificate = average(models, [2, 1, 1])
    assert not model.compiled and told(model) == told(models[0])
    for weight, value in zip(model.weights, by_hand(models, [0.5, 0.25, 0.25]), strict=True):
        np.testing.assert_allclose(weight.numpy(), value, rtol=1e-6, err_msg=weight.path)
    for one, values in zip(models, before, strict=True):
        for variable, value in zip(one.variables, values, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
    rows = [(row.fate, row.note) for row in certificate.rows]
    assert [fate for fate, _ in rows] == ["merged", "merged", "from the first model"]
    assert rows[2][1] == "seed_generator_state: equal in all"
    assert certificate.figures["shares"] == [0.5, 0.25, 0.25]
    same = average([net(1), net(1)])[0]
    for weight, other in zip(same.weights, net(1).weights, strict=True):
        np.testing.assert_allclose(weight.numpy(), other.numpy(), rtol=1e-6)


def test_statistics_of_equal_weights_are_pooled_by_counts_without_a_warning():
    """Three machines gathered statistics of parts of the data; the weights are the same."""
    x = data(60, 3)
    parts = [x[:10], x[10:30], x[30:]]
    model = keras.Sequential([keras.Input((3,)), BatchNorm()])
    model, certificate = average(
        [recalibrated(model, part) for part in parts], counts=[10, 20, 30])
    layer = model.layers[0]
    np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-5)


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_statistics_are_those_of_the_average_where_there_are_data(in_one_pass):
    models, x = [net(1), net(2)], data(40, 3)
    kernel, bias = (
        sum(model.layers[0].get_weights()[n].astype(np.float64) for model in models) / 2
        for n in (0, 1)
    )
    soup, certificate = average(models, data=x, in_one_pass=in_one_pass)
    first, _ = statistics.batch_normalizers(soup)
    np.testing.assert_allclose(first.moving_mean, (x @ kernel + bias).mean(0), rtol=1e-4)
    np.testing.assert_allclose(first.moving_variance, (x @ kernel + bias).var(0), rtol=1e-4)
    assert certificate.count("recalibrated") == 2 and certificate.surgery == "average"
    assert "given inputs of shape (40, 3)" in certificate.measured


@pytest.mark.slow
def test_every_model_and_the_average_are_judged():
    models, x = [net(1), net(2)], data(40, 3)
    models[0].compile("sgd", "mse")
    y = data(40, 2, seed=1)
    soup, certificate = average(models, data=(x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = average(models)[0]
    for name, model in zip(("model 1", "model 2", "before", "after"), (*models, merged, soup)):
        loss = np.mean((as_array(model(x)) - y) ** 2)
        assert certificate.figures[name]["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_models_of_any_kind_are_averaged(name):
    one, x = shaken(KINDS[name](), 1), inputs_of(name)
    other = shaken(copy_model(one), 2)
    if name == "in_a_lambda":
        with pytest.raises(ValueError, match="BatchNormalization. is not tracked by Keras"):
            average([one, other])
        return
    with pytest.warns(UserWarning, match="merged statistics"):
        soup, _ = average([one, other], [3, 1])
    of_statistics = {id(v) for layer in statistics.batch_normalizers(soup)
                     for v in statistics.variables_of(layer)}
    for weight, first, second in zip(soup.weights, one.weights, other.weights, strict=True):
        if id(weight) not in of_statistics:
            np.testing.assert_allclose(
                weight.numpy(), 0.75 * first.numpy() + 0.25 * second.numpy(), rtol=1e-5)
    assert type(soup) is type(one) and told(soup) == told(one)
    assert np.isfinite(predictions(soup, x)[0]).all()
    frozen = [layer.trainable for layer in soup._flatten_layers()]
    assert frozen == [layer.trainable for layer in one._flatten_layers()]


def small(*parts):
    return keras.Sequential([keras.Input((3,)), *parts])


OTHERS = {
    "a shape": (small(layers.Dense(5), BatchNorm()), r"'dense.*the weight \('kernel', \(3, 5\)\)"),
    "a class": (small(layers.Dense(4), KERAS()), "BatchNormalization for BatchNorm"),
    "a layer less": (small(layers.Dense(4)), "the first one has a BatchNorm more"),
    "a layer more": (small(layers.Dense(4), BatchNorm(), layers.ReLU()), "it has a ReLU more"),
    "an epsilon": (small(layers.Dense(4), BatchNorm(epsilon=0.1)), "epsilon=0.1 for 0.001"),
    "an activation": (small(layers.Dense(4, "relu"), BatchNorm()), "activation='relu' for"),
    "no offset": (small(layers.Dense(4), BatchNorm(center=False)), "the weight .'moving_mean'"),
    "half a freeze": (small(layers.Dense(4), FrozenBatchNorm(freeze="affine")), "FrozenBatchNorm"),
}


@pytest.mark.parametrize("other, text", OTHERS.values(), ids=OTHERS)
def test_models_of_different_structure_are_refused_with_the_first_difference(other, text):
    one = small(layers.Dense(4), BatchNorm())
    with pytest.raises(ValueError, match=f"model 2 has another structure than the .*{text}"):
        average([one, other])


@pytest.mark.slow
def test_what_cannot_be_averaged_is_named():
    with pytest.raises(ValueError, match="received no models"):
        average([])
    with pytest.raises(TypeError, match="average: received a BatchNormalization"):
        average([net(1), BatchNorm()])
    with pytest.raises(ValueError, match="average: .* is not built"):
        average([keras.Sequential([BatchNorm()])])
    for weights in ([1], [1, -1], [0, 0], [1, np.nan]):
        with pytest.raises(ValueError, match="weights=.* for 2 models; expected 2 numbers"):
            average([net(1), net(2)], weights)
    with pytest.raises(ValueError, match="counts=.0. for 1 models"):
        average([net(1)], counts=[0])


@pytest.mark.slow
def test_frozen_scales_and_offsets_are_averaged_as_others_are():
    models = [freeze(net(seed), "affine")[0] for seed in (1, 2)]
    with pytest.warns(UserWarning, match="merged statistics"):
        soup, certificate = average(models)
    for weight, value in zip(soup.weights, by_hand(models, [0.5, 0.5]), strict=True):
        np.testing.assert_allclose(weight.numpy(), value, rtol=1e-6, err_msg=weight.path)
    assert not [row for row in certificate.rows if "gamma" in row.note or "beta" in row.note]


def test_a_model_without_normalizers_and_half_precision_are_averaged():
    bare = [shaken(small(layers.Dense(4, dtype="float16")), seed) for seed in (1, 2)]
    soup, certificate = average(bare)
    kernels = np.stack([model.layers[0].kernel.numpy() for model in bare]).astype(np.float64)
    np.testing.assert_array_equal(soup.layers[0].kernel.numpy(),
                                  kernels.mean(0).astype(np.float16))
    assert certificate.rows == ()


def test_one_model_of_numbers_that_are_none_does_not_spoil_the_average():
    good, lost, x = net(0), net(1), data(9, 3)
    norm = statistics.batch_normalizers(lost)[0]
    norm.moving_mean.assign(norm.moving_mean * np.nan)
    with pytest.raises(ValueError, match="average: model 2 has NaN or infinity in .*moving_mean; .*"
                       "or data="):
        average([good, lost])
    mended, _ = average([good, lost], data=x)
    assert np.isfinite(mended(x)).all()
    norm.gamma.assign(norm.gamma * np.inf)
    with pytest.raises(ValueError, match="model 2 has NaN or infinity in .*gamma; .*checkpoint"):
        average([good, lost], data=x)
