"""Whole models with one kind of batch normalization and with the other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bn_keras import BatchNorm
from bn_keras.surgery.convert import convert

KERAS = keras.layers.BatchNormalization


def layers_of(model, kind):
    return [layer for layer in model._flatten_layers() if type(layer) is kind]


def training_step(model, x):
    """Loss, gradients' norms and statistics after one step with a loss over all outputs."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - 0.5))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return float(loss), [float(tf.norm(gradient)) for gradient in gradients]


@pytest.mark.slow
@pytest.mark.parametrize("name, normalizers", [("MobileNetV2", 52), ("ResNet50", 53)])
def test_a_large_net_predicts_and_trains_alike(name, normalizers):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
    ours = convert(model)
    assert len(layers_of(ours, BatchNorm)) == normalizers == len(layers_of(model, KERAS))
    names = [[layer.name for layer in m.layers[1:]] for m in (ours, model)]
    assert names[0] == names[1]
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(ours(x), model(x), atol=1e-5)
    (loss, norms), (expected_loss, expected_norms) = (training_step(m, x) for m in (ours, model))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    # Rounding grows through 50 layers of normalization; the largest gradients are to agree.
    np.testing.assert_allclose(norms, expected_norms, rtol=0.02, atol=1e-3 * max(expected_norms))
    for one, other in zip(ours.non_trainable_weights, model.non_trainable_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def nested():
    inner = keras.Sequential([keras.Input((3,)), KERAS(momentum=0.5, name="a")], name="inner")
    return keras.Sequential([keras.Input((3,)), inner, KERAS(axis=-1, name="b")])


def test_a_nested_model_goes_there_and_back():
    model = nested()
    x = np.random.default_rng(0).normal(2, 3, (8, 3)).astype("float32")
    model(x, training=True)
    ours = convert(model)
    assert len(layers_of(ours, BatchNorm)) == 2 and not layers_of(ours, KERAS)
    back = convert(ours, to=KERAS)
    assert len(layers_of(back, KERAS)) == 2 and not layers_of(back, BatchNorm)
    np.testing.assert_allclose(ours(x), model(x), atol=1e-6)
    np.testing.assert_allclose(back(x), model(x), atol=1e-6)
    assert layers_of(model, KERAS)[0].name == "a", "the given model was changed"


def test_settings_that_keras_does_not_know_are_named():
    model = keras.Sequential([keras.Input((3,)), BatchNorm(debias=True, name="bn")])
    with pytest.raises(ValueError, match=r"'bn' has the settings \['debias'\]"):
        convert(model, to=KERAS)
    with pytest.raises(ValueError, match="to=.*Dense"):
        convert(model, to=keras.layers.Dense)
