"""Probes of the population statistics: what moves them, what they become, how they are kept."""

import pathlib
import tempfile
from typing import Any, Dict

import numpy as np

from bn_keras.diagnostics.conformance.suite import (
    Maker,
    NotApplicable,
    alike,
    array,
    draw,
    expect,
    keras,
    keras_layer,
    probe,
    set_weights,
    statistics,
    value,
    weight,
)
from bn_keras.diagnostics.severity import DROP_IN, ROBUSTNESS, WRONG_NUMBERS


@probe(WRONG_NUMBERS)
def moving_mean_is_an_exponential_average(make: Maker) -> str:
    """Momentum is the weight of the old value in Keras; PyTorch's is that of the new one."""
    make.needs_averages()
    layer = make.where(momentum=0.9)
    x = draw(6, 3, mean=4.0)
    layer(x, training=True)
    old = _momentum(make, layer, x)
    layer(2 * x, training=True)
    return alike(value(layer, "moving_mean"), (1 - old) * (old + 2) * x.mean(0))


@probe(WRONG_NUMBERS)
def moving_variance_averages_the_biased_variance(make: Maker) -> str:
    """Keras keeps the variance that normalizes (1/n), PyTorch 1/(n-1): a third more at n = 4."""
    make.needs_averages()
    layer = make.where(momentum=0.9)
    x = draw(4, 3)
    layer(x, training=True)
    old = _momentum(make, layer, x)
    found, biased = value(layer, "moving_variance"), x.astype(float).var(0)
    unbiased = old + (1 - old) * biased * 4 / 3
    if make.foreign and found.shape == unbiased.shape and np.allclose(found, unbiased, atol=1e-5):
        make.note(
            "The moving variance is that with n − 1, as in the paper and in PyTorch; Keras's is "
            "that with n."
        )
        return alike(found, unbiased)
    return alike(found, old + (1 - old) * biased)


def _momentum(make: Maker, layer: Any, x: np.ndarray) -> float:
    """The momentum of .9 that was asked for, or one of its own, which a first step on x shows."""
    if make.takes("momentum"):
        return 0.9
    moved, mean = value(layer, "moving_mean"), x.mean(0)
    expect(moved.shape == mean.shape, f"a mean of shape {mean.shape}", f"shape {moved.shape}")
    old = 1 - float(np.dot(moved, mean) / np.dot(mean, mean))
    expect(0.5 <= old < 1, "a momentum from 0.5 to 1", f"{old:.6g}")
    return old


@probe(WRONG_NUMBERS)
def inference_comes_to_agree_with_training(make: Maker) -> str:
    """Statistics that stop moving: the loss falls, and the accuracy of evaluation stays."""
    make.needs_averages()
    layer = make.where(momentum=0.5)
    x = draw(64, 3, mean=3.0) * np.array([0.5, 1.0, 2.0], "float32")
    for _ in range(30 if make.takes("momentum") or not make.foreign else 2000):
        y = array(layer(x, training=True))
    return alike(array(layer(x, training=False)), y, 1e-2 if make.foreign else 1e-3)


@probe(WRONG_NUMBERS)
def inference_leaves_the_statistics_alone(make: Maker) -> str:
    """An evaluation that moves the statistics leaks the test set into the model."""
    layer = set_weights(make.where(momentum=0.5), (None, 3))
    before = statistics(layer)
    layer(draw(6, 3, mean=5.0), training=False)
    return alike(statistics(layer), before, 0)


@probe(WRONG_NUMBERS)
def the_statistics_are_not_trained(make: Maker) -> str:
    """A gradient through the averages lets the optimizer move them, and keeps every old graph."""
    if make.foreign and not (make.foreign.kit.name == "PyTorch" and make.foreign.holds):
        raise NotApplicable(f"{make.kind}: no optimizer could train them")
    layer = make()
    if make.foreign:
        kept = layer.holds_gradients()
        return expect(not kept, "statistics without a gradient", f"one in {kept or 'none'}")
    layer(draw(6, 3, mean=2.0), training=True)
    mine = [weight(layer, name) for name in ("moving_mean", "moving_variance")]
    trained = sum(any(one is other for other in layer.trainable_variables) for one in mine)
    return expect(not trained, "statistics that no optimizer trains", f"{trained} trainable")


@probe(DROP_IN)
def a_frozen_layer_runs_in_inference_mode(make: Maker) -> str:
    """Keras's rule for fine-tuning: trainable=False means inference, whatever training says."""
    make.needs_keras("no trainable")
    layer = set_weights(make(momentum=0.5), (None, 3))
    x = draw(6, 3, mean=5.0)
    before = value(layer, "moving_mean")
    layer.trainable = False
    expected = array(layer(x, training=False))
    evidence = alike(array(layer(x, training=True)), expected, 1e-5, of="output")
    alike(value(layer, "moving_mean"), before, 0, of="moving mean")
    return evidence


@probe(ROBUSTNESS)
def statistics_are_float32_in_a_float16_layer(make: Maker) -> str:
    """Float16 has 11 bits: at momentum .999 a step is lost in the rounding."""
    layer = make(momentum=0.999, dtype="float16")
    layer.build((None, 1))
    dtype = keras.backend.standardize_dtype(weight(layer, "moving_mean").dtype)
    return expect(dtype in ("float32", "float64"), "moving_mean in float32", dtype)


@probe(DROP_IN)
def weights_stand_in_the_order_of_keras(make: Maker) -> str:
    """Weights files, surgery and pretrained models go by the order of the weights."""
    make.needs_keras("no list of weights")
    theirs = set_weights(keras_layer()(), (None, 3))
    ours = make()
    ours.build((None, 3))
    for one in theirs.weights:
        weight(ours, one.name)
    count = len(ours.weights)
    expect(count == 4, "4 weights", f"{count}: {', '.join(one.name for one in ours.weights)}")
    ours.set_weights(theirs.get_weights())
    found = [value(ours, one.name) for one in theirs.weights]
    return alike(np.stack(found), np.stack([array(one) for one in theirs.weights]), 0)


@probe(DROP_IN)
def the_config_builds_the_same_layer(make: Maker) -> str:
    """Clone_model, saving and Keras Tuner build the layer again from its config."""
    make.needs_keras("no config")
    settings = {"momentum": 0.7, "epsilon": 0.5, "center": False}
    layer = make(**{name: setting for name, setting in settings.items() if make.takes(name)})
    again = type(layer).from_config(layer.get_config())
    x = draw(6, 3)
    found, expected = (
        np.stack([array(one(x, training=True)), array(one(x, training=False))])
        for one in (again, layer)
    )
    return alike(found, expected, 1e-6)


@probe(DROP_IN)
def a_saved_model_keeps_its_statistics(make: Maker) -> str:
    """A model that predicts otherwise once it is loaded again."""
    make.needs_keras("not saved by Keras")
    layer = make(momentum=0.5)
    if "<locals>" in type(layer).__qualname__:
        raise NotApplicable("the class is local to a function and cannot be loaded again")
    model = keras.Sequential([keras.Input((3,)), layer])
    x = draw(6, 3, mean=3.0)
    model(x, training=True)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        again = keras.models.load_model(path, custom_objects=_named(layer))
    return alike(array(again(x, training=False)), array(model(x, training=False)), 1e-6)


def _named(layer: Any) -> Dict[str, type]:
    """The layer's class under the name that Keras will look for, for classes not registered."""
    name = keras.saving.get_registered_name(type(layer))
    return {name: type(layer), type(layer).__name__: type(layer)}


@probe(DROP_IN)
def a_stateless_call_hands_out_the_moved_statistics(make: Maker) -> str:
    """Loops in JAX's way pass all state by hand: what a call hands out is all that moves."""
    make.needs_keras("no stateless_call")
    layer, plain = make(momentum=0.5), make(momentum=0.5)
    x = draw(6, 3, mean=3.0)
    for one in (layer, plain):
        one.build((None, 3))
        weight(one, "moving_mean")
    before = [array(one) for one in layer.non_trainable_variables]
    _, moved = layer.stateless_call(
        layer.trainable_variables, layer.non_trainable_variables, x, training=True
    )
    plain(x, training=True)
    after = [array(one) for one in layer.non_trainable_variables]
    for found, expected in zip(after, before):
        alike(found, expected, 0, of="the layer's own statistics as they were:")
    expect(len(moved) == len(before), f"{len(before)} statistics", str(len(moved)))
    evidence = ""
    for found, expected in zip(moved, plain.non_trainable_variables):
        evidence = alike(array(found), array(expected), of="moved statistic")
    return evidence


@probe(DROP_IN)
def isinstance_takes_it_for_the_layer_of_keras(make: Maker) -> str:
    """Quantizers, pruning and transfer-learning code find the layer by isinstance."""
    make.needs_keras("no Keras layer at all")
    bases = ", ".join(base.__name__ for base in type(make()).__bases__)
    return expect(
        isinstance(make(), keras_layer()),
        "a subclass of keras.layers.BatchNormalization",
        f"a subclass of {bases}",
    )
