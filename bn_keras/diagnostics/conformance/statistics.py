"""Probes of the population statistics: what moves them, what they become, how they are kept."""

import pathlib
import tempfile

import keras
import numpy as np

from bn_keras.diagnostics.conformance.suite import (
    NotApplicable,
    alike,
    array,
    draw,
    expect,
    probe,
    set_weights,
)


@probe
def moving_mean_is_an_exponential_average(make):
    """Momentum is the weight of the old value in Keras; PyTorch's is that of the new one."""
    layer = make(momentum=0.9)
    x = draw(6, 3, mean=4.0)
    layer(x, training=True)
    layer(2 * x, training=True)
    return alike(array(layer.moving_mean), (0.9 * 0.1 + 0.1 * 2) * x.mean(0))


@probe
def moving_variance_averages_the_biased_variance(make):
    """Keras keeps the variance that normalizes (1/n), PyTorch 1/(n-1): a third more at n = 4."""
    layer = make(momentum=0.9)
    x = draw(4, 3)
    layer(x, training=True)
    return alike(array(layer.moving_variance), 0.9 + 0.1 * x.astype(float).var(0))


@probe
def inference_leaves_the_statistics_alone(make):
    """An evaluation that moves the statistics leaks the test set into the model."""
    layer = set_weights(make(momentum=0.5), (None, 3))
    before = array(layer.moving_mean), array(layer.moving_variance)
    layer(draw(6, 3, mean=5.0), training=False)
    return alike(np.stack([array(layer.moving_mean), array(layer.moving_variance)]), before, 0)


@probe
def a_frozen_layer_runs_in_inference_mode(make):
    """Keras's rule for fine-tuning: trainable=False means inference, whatever training says."""
    layer = set_weights(make(momentum=0.5), (None, 3))
    x = draw(6, 3, mean=5.0)
    before = array(layer.moving_mean)
    layer.trainable = False
    expected = array(layer(x, training=False))
    error = alike(array(layer(x, training=True)), expected, 1e-5)
    alike(array(layer.moving_mean), before, 0)
    return error


@probe
def statistics_are_float32_in_a_float16_layer(make):
    """Float16 has 11 bits: at momentum .999 a step is lost in the rounding."""
    layer = make(momentum=0.999, dtype="float16")
    layer.build((None, 1))
    dtype = keras.backend.standardize_dtype(layer.moving_mean.dtype)
    return expect(dtype in ("float32", "float64"), f"moving_mean is {dtype}")


@probe
def weights_stand_in_the_order_of_keras(make):
    """Weights files, surgery and pretrained models go by the order of the weights."""
    theirs = set_weights(keras.layers.BatchNormalization(), (None, 3))
    ours = make()
    ours.build((None, 3))
    names = [weight.name for weight in ours.weights]
    expect(len(names) == 4, f"weights {names}")
    ours.set_weights(theirs.get_weights())
    found = [array(getattr(ours, weight.name)) for weight in theirs.weights]
    return alike(np.stack(found), np.stack([array(weight) for weight in theirs.weights]), 0)


@probe
def the_config_builds_the_same_layer(make):
    """Clone_model, saving and Keras Tuner build the layer again from its config."""
    layer = make(momentum=0.7, epsilon=0.5, center=False)
    again = type(layer).from_config(layer.get_config())
    x = draw(6, 3)
    found, expected = (
        np.stack([array(one(x, training=True)), array(one(x, training=False))])
        for one in (again, layer)
    )
    return alike(found, expected, 1e-6)


@probe
def a_saved_model_keeps_its_statistics(make):
    """A model that predicts otherwise once it is loaded again."""
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


def _named(layer):
    """The layer's class under the name that Keras will look for, for classes not registered."""
    name = keras.saving.get_registered_name(type(layer))
    return {name: type(layer), type(layer).__name__: type(layer)}
