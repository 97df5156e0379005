"""Every bug against hand-computed logits of a net with a convolution and dropout."""

import functools
import itertools

import keras
import numpy as np
import pytest

from bn_keras import BatchNorm, losses
from bn_keras.batch_norm import reference
from bn_keras.data import Split, Splits
from bn_keras.diagnostics import pitfalls
from bn_keras.diagnostics.probe import Nets, make_probe
from bn_keras.loop import Task

EPSILON = 1e-3
PLACES = ("conv_norm", "dense_norm", "logits_norm")
POPULATION, FRESH, BATCH, SKIPPED = "population", "fresh", "batch", "skipped"
# What each evaluation does at the three normalizers.
MODES = {
    "correct": (POPULATION, POPULATION, POPULATION),
    "never_updated": (FRESH, FRESH, FRESH),
    "conv_never_updated": (FRESH, POPULATION, POPULATION),
    "batch_statistics": (BATCH, BATCH, BATCH),
    "dense_batch_statistics": (POPULATION, BATCH, BATCH),
    "as_written": (FRESH, BATCH, BATCH),
    "without_bn": (SKIPPED, SKIPPED, SKIPPED),
}


def net(normalizer=BatchNorm, seed=0):
    """1x1 convolution, BN, relu, dense, BN, relu, dropout, dense, BN; no weight is as it starts."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((3, 3, 2))
    x = keras.layers.Conv2D(4, 1, name="conv")(inputs)
    x = keras.layers.Activation("relu")(normalizer(epsilon=EPSILON, name="conv_norm")(x))
    x = keras.layers.Dense(3, name="dense")(keras.layers.Flatten()(x))
    x = keras.layers.Activation("relu")(normalizer(epsilon=EPSILON, name="dense_norm")(x))
    x = keras.layers.Dense(5, name="logits")(keras.layers.Dropout(0.5, seed=1)(x))
    model = keras.Model(inputs, normalizer(epsilon=EPSILON, name="logits_norm")(x))
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) * rng.choice([-1, 1], weight.shape))
        if weight.name == "moving_variance":
            weight.assign(np.abs(weight))
    return model


def images(count=40):
    rng = np.random.default_rng(7)
    return rng.normal(1, 2, (count, 3, 3, 2)).astype("float32"), rng.integers(0, 5, count)


def oracle(model, x, modes, kept=1.0):
    """Logits in NumPy; `kept` multiplies what stands at the dropout."""
    weights = {w.path: w.numpy().astype(float) for w in model.weights}

    def linear(name, x):
        kernel = weights[f"{name}/kernel"]
        return x @ kernel.reshape(kernel.shape[-2:]) + weights[f"{name}/bias"]

    def normalized(place, x):
        gamma, beta = weights[f"{place}/gamma"], weights[f"{place}/beta"]
        mode = modes[PLACES.index(place)]
        if mode == SKIPPED:
            return x
        if mode == BATCH:
            return reference.forward(x, gamma, beta, epsilon=EPSILON)[0]
        mean, variance = weights[f"{place}/moving_mean"], weights[f"{place}/moving_variance"]
        if mode == FRESH:
            mean, variance = np.zeros_like(mean), np.ones_like(variance)
        return reference.inference(x, mean, variance, gamma, beta, epsilon=EPSILON)

    x = np.maximum(normalized("conv_norm", linear("conv", x.astype(float))), 0)
    x = np.maximum(normalized("dense_norm", linear("dense", x.reshape(len(x), -1))), 0)
    return normalized("logits_norm", linear("logits", x * kept))


@pytest.mark.parametrize("normalizer", [BatchNorm, keras.layers.BatchNormalization],
                         ids=["ours", "keras"])
@pytest.mark.parametrize("name", MODES)
def test_an_evaluation_gives_the_logits_of_its_bug_and_of_no_other(name, normalizer):
    model, (x, _) = net(normalizer), images()
    found = np.asarray(getattr(pitfalls, name)(model)(x))
    for other, modes in MODES.items():
        same = np.allclose(found, oracle(model, x, modes), rtol=1e-4, atol=1e-3)
        assert same == (other == name), other


def test_active_dropout_drops_units_and_leaves_the_normalizers_in_inference_mode():
    model, (x, _) = net(), images()
    forward = pitfalls.dropout_active(model)
    possible = np.stack([
        oracle(model, x, MODES["correct"], 2 * np.array(kept))  # what stays is doubled
        for kept in itertools.product([0.0, 1.0], repeat=3)
    ])
    found = [np.asarray(forward(x)) for _ in range(2)]
    for logits in found:
        error = np.abs(possible - logits).max(-1).min(0)
        assert error.max() < 1e-3
    assert not np.allclose(*found), "the same units were dropped twice"


@pytest.fixture(scope="module")
def measured():
    """(model, its variables before, what was measured of it)."""
    model, (x, labels) = net(), images()
    part = Split(x, labels)
    before = [variable.numpy() for variable in model.variables]
    nets = Nets(model, Splits(part, part, part, classes=5), Task(losses.softmax), None)
    found = make_probe("pitfalls", nets).at_end()
    return model, before, {name: float(values[0]) for name, values in found.items()}


@pytest.mark.slow
def test_the_model_is_left_as_it_was(measured):
    model, before, _ = measured
    assert len(before) > 18  # the state of the dropout's random numbers, too
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_measured_are_the_bugs_a_model_can_have():
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    assert pitfalls.evaluations(plain) == ["correct"]
    dropping = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))
    assert pitfalls.evaluations(dropping) == ["correct", "dropout_active"]
    dense = keras.Model(inputs, BatchNorm()(inputs))
    assert pitfalls.evaluations(dense) == [
        "correct", "never_updated", "batch_statistics", "without_bn"
    ]
    assert set(pitfalls.evaluations(net())) == {*MODES, "dropout_active"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_accuracy_loss_and_spread_are_those_of_the_logits(name, measured):
    (model, _, found), (x, labels) = measured, images()
    assert found["pitfall/images"] == 40
    logits = functools.partial(oracle, model, modes=MODES[name])
    for key, size in {"whole": 40, "16": 16, "2": 2, "1": 1}.items():
        together = np.concatenate([logits(x[start:start + size]) for start in range(0, 40, size)])
        right = (together.argmax(-1) == labels).mean()
        assert found[f"pitfall/{name}/{key}"] == pytest.approx(right), key
    spread = (together.max(0) - together.min(0)).max()
    assert found[f"pitfall/{name}/spread"] == pytest.approx(spread, rel=1e-4, abs=1e-4)
    whole = logits(x)
    whole -= whole.max(-1, keepdims=True)
    loss = np.log(np.exp(whole).sum(-1)) - whole[np.arange(40), labels]
    assert found[f"pitfall/{name}/loss"] == pytest.approx(loss.mean(), rel=1e-4)
